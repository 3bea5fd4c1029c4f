"""Is it right: packed rows, stored references, evaluation and training on a card give the numbers of the plain ways.

Each check computes the same thing in two ways on one device (or one way on two) and holds their difference against a bound of
`tolerance.py`. Where borders between rows matter, the error of a row without any is computed too: a bound that it would pass proves
nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from gpu import rows as random_rows
from gpu import tolerance, trainers
from gpu.finding import Finding, measured, within
from gpu.rows import Rows
from gpu.trainers import Asked

BETA = 0.1


def _size(device: str) -> tuple[dict[str, Any], int, int]:
    """Return the shape, how many pairs or conversations, and by what their lengths are divided."""
    return (random_rows.SHAPES["135M"], 16, 1) if device == "cuda" else (random_rows.IN_SMALL["135M"], 8, 8)


def sharp(shape: dict[str, Any]) -> float:
    """Return the spread of random weights at which attention is no mean and logits spread by 1: with the usual 0.02 a token hardly
    sees the others, and a row without borders would pass for right."""
    return shape["hidden_size"] ** -0.5


def _model(shape: dict[str, Any], device: str) -> Any:
    return trainers.model(shape, Asked(device), seed=1, initializer_range=sharp(shape))


def _pairs(device: str, count: int, shape: dict[str, Any], shorten: int) -> Rows:
    both = [random_rows.pairs(kind, count // 2, shape["vocab_size"], shorten) for kind in random_rows.LENGTHS]
    return [row for kind in both for row in kind]


def dpo(device: str, seconds: float) -> Iterator[Finding]:
    """DPO in packed rows, with shared prefixes and without, against the padded way in the same arithmetic and in fp32."""
    shape, count, shorten = _size(device)
    rows = _pairs(device, count, shape, shorten)
    exact = _dpo("padded", "fp32", shape, rows, device)
    # References beside the policy's own numbers, so that the pairs weigh differently in the loss.
    for place, row in enumerate(rows):
        row["ref_chosen_logps"] = exact.sums[place] + 5 * math.sin(place)
        row["ref_rejected_logps"] = exact.sums[count + place] + 5 * math.cos(place)
    exact = _dpo("padded", "fp32", shape, rows, device)
    tokens = sum(len(row[f"{side}_ids"]) for row in rows for side in ("chosen", "rejected")) / (2 * count)
    theory = tolerance.noise("fp32", shape["num_hidden_layers"], shape["intermediate_size"], tokens)
    packed = _dpo("shared_prefix", "fp32", shape, rows, device)
    yield within("log-probs, fp32: shared_prefix - padded", tolerance.apart(packed.sums, exact.sums), theory, "nats")
    yield within("gradient, fp32: shared_prefix - padded", _relative(packed.gradient, exact.gradient), theory, "of it")
    plain = _dpo("padded", "bf16", shape, rows, device)
    plain_nats, plain_gradient = (
        tolerance.apart(plain.sums, exact.sums),
        _relative(plain.gradient, exact.gradient),
    )
    yield measured("log-probs, bf16: padded - fp32", plain_nats, "nats")
    yield measured("gradient, bf16: padded - fp32", plain_gradient, "of it")
    bound = tolerance.against(plain_nats, "bf16")
    for way in ("packed", "shared_prefix"):
        found = _dpo(way, "bf16", shape, rows, device)
        yield within(f"log-probs, bf16: {way} - fp32", tolerance.apart(found.sums, exact.sums), bound, "nats")
        # -log sigmoid(beta x) changes by at most beta with x, the difference of two answers' errors, over the root of the pairs.
        loss_bound = BETA * math.sqrt(2 / count) * tolerance.SIGMAS * bound
        yield within(f"loss, bf16: {way} - fp32", abs(found.loss - exact.loss), loss_bound, "nats")
        gradient = _relative(found.gradient, exact.gradient)
        yield within(f"gradient, bf16: {way} - fp32", gradient, tolerance.against(plain_gradient, "bf16"), "of it")
        del found
    wrong = tolerance.apart(_without_borders(shape, rows, device), exact.sums)
    yield within("that bound / error without borders", bound / wrong, 1, "", "above 1 these bounds would prove nothing")


class _Computed:
    def __init__(self, sums: list[float], loss: float, gradient: Any) -> None:
        self.sums, self.loss, self.gradient = sums, loss, gradient


def _dpo(way: str, precision: str, shape: dict[str, Any], rows: Rows, device: str) -> _Computed:
    """Score and train once: the sums of both sides, the loss over all pairs, and its gradient, in micro-batches of four."""
    import torch

    net = _model(shape, device)
    trainer = trainers.dpo(way, net, rows, Asked(device, precision == "bf16", micro_batch=4))
    trainer.model.train()
    losses, sides = [], [[], []]
    for start in range(0, len(rows), 4):
        batch = trainers.on_device(trainer, rows[start : start + 4])
        with torch.no_grad(), trainers.arithmetic(trainer):
            for side, found in zip(sides, _sums(trainer.model, batch).chunk(2), strict=True):
                side += found.tolist()
        with trainers.arithmetic(trainer):
            loss = trainer.compute_loss(trainer.model, batch)
        (loss * 4 / len(rows)).backward()
        losses.append(float(loss))
    return _Computed([*sides[0], *sides[1]], sum(losses) / len(losses), _gradient(net))


def _sums(net: Any, batch: dict[str, Any]) -> Any:
    """Sum the log-probabilities of each side's answer, as DPOTrainer does."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "packed_row") if name in batch}
    return net(**given, labels=labels, use_cache=False, fused_lm_head=True).log_probs.float().sum(1)


def _without_borders(shape: dict[str, Any], rows: Rows, device: str) -> list[float]:
    """Score as if the rows had no borders: each answer sees all that comes before it in the row."""
    import torch

    from rounds.train.tokens.packed_row import Segment

    trainer = trainers.dpo("shared_prefix", _model(shape, device), rows, Asked(device, micro_batch=4))
    sides: list[list[float]] = [[], []]
    for start in range(0, len(rows), 4):
        batch = trainers.on_device(trainer, rows[start : start + 4])
        row = batch["packed_row"]
        batch["packed_row"] = replace(row, segments=(Segment(row.input_ids.numel()),))
        with torch.no_grad():
            for side, found in zip(sides, _sums(trainer.model, batch).chunk(2), strict=True):
                side += found.tolist()
    return [*sides[0], *sides[1]]


def _gradient(net: Any) -> Any:
    import torch

    return torch.cat([p.grad.flatten().float() for p in net.parameters() if p.grad is not None])


def _relative(some: Any, other: Any) -> float:
    return float((some - other).norm() / other.norm())


def sft(device: str, seconds: float) -> Iterator[Finding]:
    """SFT on packed rows against TRL's own trainer on each conversation by itself."""
    shape, count, shorten = _size(device)
    rows = random_rows.conversations(2 * count, 2000, shape["vocab_size"], shorten)
    for row in rows:
        row["seq_lengths"] = [len(row["input_ids"])]
    together = [{name: [n for row in rows for n in row[name]] for name in rows[0]}]
    alone = [[row] for row in rows]
    exact = _sft("padded", "fp32", alone, shape, device)
    theory = tolerance.noise("fp32", shape["num_hidden_layers"], shape["intermediate_size"])
    packed = _sft("ours", "fp32", [together], shape, device)
    yield within("loss, fp32: packed - alone", abs(packed[0] - exact[0]), theory, "nats")
    yield within("gradient, fp32: packed - alone", _relative(packed[1], exact[1]), theory, "of it")
    plain, found = (_sft(way, "bf16", given, shape, device) for way, given in (("padded", alone), ("ours", [together])))
    yield measured("loss, bf16: alone - fp32", abs(plain[0] - exact[0]), "nats")
    # One number each, so that no ratio of two can be judged: by theory, the mean over the learnt tokens.
    mean = tolerance.noise("bf16", shape["num_hidden_layers"], shape["intermediate_size"]) / math.sqrt(random_rows.learnt(rows))
    yield within("loss, bf16: packed - fp32", abs(found[0] - exact[0]), tolerance.against(mean, "bf16"), "nats")
    plain_gradient = _relative(plain[1], exact[1])
    bound = tolerance.against(plain_gradient, "bf16")
    yield within("gradient, bf16: packed - fp32", _relative(found[1], exact[1]), bound, "of it")
    together[0]["seq_lengths"] = [len(together[0]["input_ids"])]
    wrong = _sft("ours", "fp32", [together], shape, device)
    yield within(
        "that bound / error without borders", bound / _relative(wrong[1], exact[1]), 1, reason="above 1 this bound would prove nothing"
    )


def _sft(way: str, precision: str, micro_batches: list[Rows], shape: dict[str, Any], device: str) -> tuple[float, Any]:
    net = _model(shape, device)
    trainer = trainers.sft(way, net, Asked(device, precision == "bf16", micro_batch=1))
    trainer.model.train()
    total, items = 0.0, sum(map(random_rows.learnt, micro_batches))
    for rows in micro_batches:
        with trainers.arithmetic(trainer):
            loss = trainer.compute_loss(trainer.model, trainers.on_device(trainer, rows), num_items_in_batch=items)
        loss.backward()
        total += float(loss)
    return total, _gradient(net)


def reference(device: str, seconds: float) -> Iterator[Finding]:
    """A round that starts from its own reference begins at ln 2: what stage `reference` stores is what the first step computes."""
    import pyarrow as pa
    import torch

    from rounds.train.config.cluster import Machine
    from rounds.train.weights import models, pair_logprobs

    shape, count, shorten = _size(device)
    rows = _pairs(device, count, shape, shorten)
    table = pa.Table.from_pylist(rows)
    for precision in ("fp32", "bf16"):
        scored = []
        for at_once in (count, 3, 1):
            machine = Machine.model_validate({"device": device, "precision": precision, "eval_batch_size": 2 * at_once})
            with models.autocast(machine):
                score = pair_logprobs.prepare(_model(shape, device), machine)
                scored.append(pair_logprobs.in_batches(score, table, range(count), machine))
        sums = [[value for each in run for value in (each.chosen, each.rejected)] for run in scored]
        spread = max(tolerance.apart(sums[0], other) for other in sums[1:])
        yield measured(f"stored log-probs, {precision}: between batches of {count}, 3 and 1", spread, "nats")
        for row, each in zip(rows, scored[1], strict=True):
            row["ref_chosen_logps"], row["ref_rejected_logps"] = each.chosen, each.rejected
        trainer = trainers.dpo("auto", _model(shape, device), rows, Asked(device, precision == "bf16", micro_batch=4))
        worst = 0.0
        for start in range(0, count, 4):
            with torch.no_grad(), trainers.arithmetic(trainer):
                loss = trainer.compute_loss(trainer.model, trainers.on_device(trainer, rows[start : start + 4]))
            worst = max(worst, abs(float(loss) - math.log(2)))
        # At 0 the loss changes by half of beta with the difference of two answers' errors, and one rounding of each logit counts.
        bound = BETA / 2 * math.sqrt(2) * (tolerance.SPREAD * spread + tolerance.noise(precision, 1, 1))
        yield within(f"first loss, {precision}: - ln 2", worst, bound, "nats")


def answers(device: str, seconds: float) -> Iterator[Finding]:
    """Scoring and writing, in batches of one and of many: as equal as the arithmetic allows."""
    from rounds.train.config.cluster import Machine
    from rounds.train.weights import logprobs, models

    shape, count, shorten = _size(device)
    rows = _pairs(device, count, shape, shorten)
    asked = [(row["prompt_ids"], row["chosen_ids"]) for row in rows]
    tokens = sum(len(answer) for _, answer in asked) / len(asked)
    for precision in ("fp32", "bf16"):
        machine = Machine.model_validate({"device": device, "precision": precision})
        net: Any = models.place(_model(shape, device), machine).eval()
        written = [_write(net, asked, size, 16) for size in (1, count)]
        bound = tolerance.noise(precision, shape["num_hidden_layers"], shape["intermediate_size"])
        yield from _compared(precision, written[0], written[1], bound)
        one, many = (logprobs.answer_logprobs(net, asked, size) for size in (1, count))
        whole = tolerance.noise(precision, shape["num_hidden_layers"], shape["intermediate_size"], tokens)
        yield within(f"scores, {precision}: batch of 1 - of {count}", tolerance.apart(one, many), whole, "nats")


def _write(net: Any, asked: Sequence[tuple[list[int], list[int]]], size: int, tokens: int) -> list[tuple[list[int], Any]]:
    """Write answers greedily: their tokens, and the logits of each."""
    import torch

    found = []
    for start in range(0, len(asked), size):
        prompts = [prompt for prompt, _ in asked[start : start + size]]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=net.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=net.device)
        with torch.no_grad():
            out = net.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logits = torch.stack([each.float() for each in out.logits], 1)
        found += [(row[width:].tolist(), logits[place]) for place, row in enumerate(out.sequences)]
    return found


def _compared(precision: str, one: list, many: list, bound: float) -> Iterator[Finding]:
    """Answers may part only where two tokens are as likely, up to the error of their logits; after that they are other answers."""
    errors, gaps, equal = [], [0.0], 0
    for (ids, logits), (others, other_logits) in zip(one, many, strict=True):
        parted = next((n for n, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b), None)
        shared = slice(0, len(ids) if parted is None else parted + 1)
        errors.append(float((logits[shared] - other_logits[shared]).square().mean().sqrt()))
        equal += parted is None
        if parted is not None:
            gaps.append(float(logits[parted, ids[parted]] - logits[parted, others[parted]]))
    yield within(f"logits while writing, {precision}: batch of 1 - of {len(one)}", tolerance.rms(errors), bound, "")
    yield within(f"largest gap where answers part, {precision}", max(gaps), 2 * bound, "", f"{equal} of {len(one)} answers are equal")


def devices(device: str, seconds: float) -> Iterator[Finding]:
    """The same policy trained by SFT for ten steps on the CPU and on the card, in fp32.

    Rounding grows along a run, and AdamW divides small gradients by their own size, so the bound is measured: how far the run on the
    CPU goes astray by itself when the weights that it starts from are each changed by one rounding. Two such runs differ by the same
    kind of error; four times as much is allowed, as a run is one draw.
    """
    shape = random_rows.SHAPES["14M"] if device == "cuda" else random_rows.IN_SMALL["14M"]
    rows = random_rows.conversations(10, 200, shape["vocab_size"], 1 if device == "cuda" else 4)
    for row in rows:
        row["seq_lengths"] = [len(row["input_ids"])]
    steps = [rows[start : start + 2] for start in range(0, len(rows), 2)] * 2
    there, nudged = (_curve(shape, steps, "cpu", nudge) for nudge in (False, True))
    here = _curve(shape, steps, device, False, threads=2)
    gone = max(abs(a - b) for a, b in zip(there, nudged, strict=True))
    yield measured("losses of 10 steps: weights changed by one rounding", gone, "nats")
    floor = tolerance.noise("fp32", shape["num_hidden_layers"], shape["intermediate_size"])
    what = "the CPU and the card" if device == "cuda" else "one thread and two"
    found = max(abs(a - b) for a, b in zip(there, here, strict=True))
    yield within(f"losses of 10 steps: {what}", found, tolerance.SIGMAS * gone + floor, "nats", f"from {there[0]:.4f} to {there[-1]:.4f}")
    yield within("loss of the first rows after a pass / before", there[len(steps) // 2] / there[0], 1)


def _curve(shape: dict[str, Any], steps: list[Rows], device: str, nudge: bool, threads: int = 1) -> list[float]:
    import torch

    torch.set_num_threads(threads)
    net = _model(shape, device)
    if nudge:
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1 + tolerance.UNIT["fp32"] * torch.randn_like(parameter).sign())
    trainer = trainers.sft("ours", net, Asked(device, micro_batch=2))
    trainer.model.train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    losses = []
    for rows in steps:
        loss = trainer.compute_loss(trainer.model, trainers.on_device(trainer, rows), num_items_in_batch=random_rows.learnt(rows))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    return losses
