"""Is it fast, and as planned: steps of stock TRL, of ours and of flash-pref, with what the planner says of exactly these runs.

One check per size. Each run is a fresh model, one step for warming up, then steps for a few seconds. Printed per run:

- pairs or conversations a second, and tokens: of both sides of a pair, padding left out, so that ways can be compared;
- MFU: the operations that train/forecast/arithmetic.py counts for the tokens that this way computes, padding and recomputation
  included, over the matrix product measured in this very process;
- the floor: those operations over that rate, and the fewest bytes (each weight read forward and backward, its gradient written and
  read, AdamW's three numbers read and written) over the copy's bandwidth. No version of a step is faster than the larger of the two;
- the peak of memory, and beside it the planner's memory and time, with errors.
"""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpu import card, table, trainers
from gpu import rows as random_rows
from gpu.card import Ceilings
from gpu.finding import Finding, NotHere, measured, not_here
from gpu.rows import Rows
from gpu.trainers import Asked

GIB = 2**30


@dataclass(frozen=True)
class Run:
    """One way to train one model."""

    kind: str
    """`clinical` or `ultrafeedback` pairs, or `conversations`."""
    way: str
    checkpointing: bool = False
    liger: bool = False

    @property
    def name(self) -> str:
        method = "sft" if self.kind == "conversations" else "dpo"
        extra = [*(["checkpointing"] if self.checkpointing else []), *(["liger"] if self.liger else [])]
        return ", ".join([f"{method} {self.kind}, {self.way}", *extra])


RUNS = (
    Run("clinical", "stock"),
    Run("clinical", "shared_prefix"),
    Run("clinical", "flash-pref"),
    Run("conversations", "padded"),
    Run("conversations", "bfd"),
    Run("conversations", "ours"),
    Run("ultrafeedback", "stock"),
    Run("ultrafeedback", "shared_prefix"),
    Run("clinical", "stock", checkpointing=True),
    Run("clinical", "shared_prefix", checkpointing=True),
    Run("conversations", "ours", checkpointing=True),
    Run("clinical", "shared_prefix", liger=True),
)
LORA_RUNS = (Run("clinical", "shared_prefix", checkpointing=True), Run("conversations", "ours", checkpointing=True))
"""For a model whose own gradients and optimizer fit no card: an adapter of rank 16."""
BATCH = {"cuda": 16, "cpu": 8}
"""Pairs or conversations a step."""
MICRO = {"14M": 8, "135M": 8, "1B": 4, "8B": 2}


def size(name: str, device: str, seconds: float) -> Iterator[Finding]:
    """Measure all ways at one size, each as long as the rest of the time allows."""
    from rounds.train.forecast import model_shape, skeleton

    shape = (random_rows.SHAPES if device == "cuda" else random_rows.IN_SMALL)[name]
    counted = model_shape.from_counts(skeleton.count(random_rows.config(shape)))
    best = card.ceilings(device)
    yield measured("matrix product and copy here", best.flops / 1e12, "TFLOP/s", f"{best.bandwidth / 1e9:.0f} GB/s")
    runs = LORA_RUNS if name == "8B" else RUNS
    until = time.monotonic() + seconds
    for place, run in enumerate(runs):
        left = (until - time.monotonic()) / (len(runs) - place)
        if left < 0.2:
            yield not_here(run.name, "no time left")
            continue
        try:
            yield from _one(run, shape, counted, best, device, min(3.0, left / 3) if device == "cuda" else 0.0, MICRO[name])
        except (ImportError, NotHere) as error:
            yield not_here(run.name, str(error))
        except Exception as error:
            if "out of memory" not in str(error):
                raise
            yield not_here(run.name, "does not fit this card's memory")
        gc.collect()
        _forget(device)
    if device != "cuda":
        yield not_here("peak and planned memory", "torch counts no tensors on a CPU; scripts/bench_memory does")


def _forget(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _one(run: Run, shape: dict[str, Any], counted: Any, best: Ceilings, device: str, seconds: float, micro: int) -> Iterator[Finding]:
    from rounds.train.config.training import Lora

    shorten = 1 if device == "cuda" else 16
    lora = Lora() if run in LORA_RUNS and not shape.get("tie_word_embeddings", True) else None
    micro = micro if device == "cuda" else 4
    asked = Asked(device, True, run.checkpointing, micro, run.liger)
    _check(run, device, counted, lora)
    rows, trainer = _trainer(run, shape, asked, shorten, lora)
    micro_batches = _cut(run, trainer, rows, micro)
    optimiser = trainers.optimizer(trainer)
    step = trainers.step(trainer, optimiser, micro_batches)  # warming up
    _forget(device)
    taken = [trainers.step(trainer, optimiser, micro_batches)]
    while sum(each.seconds for each in taken) < seconds:
        taken.append(trainers.step(trainer, optimiser, micro_batches))
    each = sum(step.seconds for step in taken) / len(taken)
    span = _span(run, micro_batches)
    flops = step.tokens * _flops(counted, span, run.checkpointing, lora)
    moved = _bytes(counted, lora, len(micro_batches))
    real = _tokens(run, rows)
    yield measured(
        run.name,
        len(rows) / each,
        "/s",
        f"{real / each:,.0f} tokens/s, MFU {flops / each / best.flops:.1%}, a step {each * 1e3:.1f} ms, floor "
        f"{table.number(flops / best.flops * 1e3, 'ms')} of operations, {table.number(moved / best.bandwidth * 1e3, 'ms')} of bytes"
        f"{_peak(device)}",
        tokens_per_second=real / each,
        mfu=flops / each / best.flops,
        seconds_per_step=each,
        steps=len(taken),
        floor_operations_seconds=flops / best.flops,
        floor_bytes_seconds=moved / best.bandwidth,
        tokens_computed=step.tokens,
    )
    yield from _planned(run, counted, best, device, each, flops, micro_batches, lora)


def _peak(device: str) -> str:
    import torch

    return f", peak {torch.cuda.max_memory_allocated() / GIB:.2f} GiB" if device == "cuda" else ""


def _check(run: Run, device: str, counted: Any, lora: Any) -> None:
    """Raise `NotHere` for what cannot be had: Liger without its package or a card, a model that is too large."""
    from rounds.train.config.cluster import Machine
    from rounds.train.forecast import memory
    from rounds.train.weights import models

    if run.liger:
        reason = models.liger_obstacle(Machine(device="cuda" if device == "cuda" else "cpu", use_liger_kernel=True))
        if reason:
            raise NotHere(reason.partition(", which ")[2] or reason)
    room = card.memory(device)
    if room is not None and lora is not None:
        need = memory.training(counted, _setting(run, device, 2 * 800, 800, lora)).peak
        if need > room - memory.RESERVE:
            raise NotHere(f"needs {need / GIB:.0f} GiB by the planner, and the card has {room / GIB:.0f}")


def _trainer(run: Run, shape: dict[str, Any], asked: Asked, shorten: int, lora: Any) -> tuple[Rows, Any]:
    from rounds.train.weights import adapters

    net = trainers.model(shape, asked)
    adapter = adapters.config(lora)
    if run.kind == "conversations":
        rows = random_rows.conversations(BATCH[asked.device], 2048, shape["vocab_size"], shorten)
        return rows, trainers.sft(run.way, net, asked, 2048 // shorten, adapter)
    rows = random_rows.pairs(run.kind, BATCH[asked.device], shape["vocab_size"], shorten)
    if run.way == "flash-pref":
        return rows, _flash_pref(net, rows, asked)
    return rows, trainers.dpo(run.way, net, rows, asked, adapter)


def _flash_pref(net: Any, rows: Rows, asked: Asked) -> Any:
    """TRL's trainer with flash-pref's shared prefixes around its forward pass. It wants transformers of its own time, and the package
    flash-attn; with others it is told why it cannot run."""
    import importlib.metadata as packages

    from packaging.requirements import Requirement

    try:
        wanted = next(Requirement(r) for r in packages.requires("flash-pref") or () if r.startswith("transformers"))
    except packages.PackageNotFoundError:
        raise NotHere("the package flash-pref is not there") from None
    found = packages.version("transformers")
    if not wanted.specifier.contains(found):
        raise NotHere(f"flash-pref wants transformers {wanted.specifier}, and {found} is here")
    from flash_pref import shared_prefix  # type: ignore[import-not-found]

    net.set_attn_implementation("flash_attention_2")
    trainer = trainers.dpo("stock", net, rows, asked)
    inner = trainer.compute_loss

    def compute_loss(model: Any, batch: dict[str, Any], **kwargs: Any) -> Any:
        with shared_prefix(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], interleaved=True):
            return inner(model, batch, **kwargs)

    trainer.compute_loss = compute_loss
    return trainer


def _cut(run: Run, trainer: Any, rows: Rows, micro: int) -> list[Rows]:
    """Cut a step's rows into micro-batches: as they come for TRL, arranged or packed for ours and for its packing."""
    if run.kind != "conversations":
        arranged = getattr(trainer, "arrange", None) or list
        rows = [rows[place] for place in arranged(list(range(len(rows))))]
    elif run.way != "padded":
        rows, micro = trainers.packed(rows, 2048, "bfd"), 1
    return [rows[start : start + micro] for start in range(0, len(rows), micro)]


def _lengths(run: Run, rows: Rows) -> list[int]:
    """Return the lengths of the sequences that attention keeps apart."""
    if run.kind == "conversations":
        return [n for row in rows for n in row.get("seq_lengths") or [len(row["input_ids"])]]
    return [len(row["prompt_ids"]) + len(row[f"{side}_ids"]) for row in rows for side in ("chosen", "rejected")]


def _span(run: Run, micro_batches: list[Rows]) -> float:
    """Return the keys that attention computes per token, as `arithmetic.span`: of a token's own sequence before it, or where there is
    a dense mask, of the whole row."""
    from rounds.train.forecast import arithmetic

    sequences = [n for rows in micro_batches for n in _lengths(run, rows)]
    longest = sum(max(_lengths(run, rows)) for rows in micro_batches) / len(micro_batches)
    mean = sum(n * n for n in sequences) / sum(sequences)  # of the sequence that a token is in
    return arithmetic.span(longest, mean, skips_masked=not _dense(run))


def _dense(run: Run) -> bool:
    return run.way in ("stock", "padded", "bfd")


def _flops(counted: Any, span: float, checkpointing: bool, lora: Any) -> float:
    from rounds.train.forecast import arithmetic

    return arithmetic.flops_per_token(counted, arithmetic.Work(span, checkpointing, frozen=lora is not None))


def _bytes(counted: Any, lora: Any, micro_batches: int) -> float:
    """Return the fewest bytes of a step: fp32 weights twice a micro-batch, gradients written and read, AdamW's three read and written."""
    trained = counted.adapter_parameters(lora) if lora else counted.parameters
    return 4 * (2 * micro_batches * counted.parameters + 2 * trained + 6 * trained)


def _tokens(run: Run, rows: Rows) -> int:
    if run.kind == "conversations":
        return sum(len(row["input_ids"]) for row in rows)
    return random_rows.tokens_of_pairs(rows)


def _setting(run: Run, device: str, micro_tokens: int, longest: int, lora: Any) -> Any:
    from rounds.train.forecast.memory import Setting

    return Setting(
        micro_tokens=micro_tokens,
        longest=longest,
        optimizer="adamw_torch_fused",
        accumulation=2,
        lora=lora,
        activation_checkpointing=run.checkpointing,
        on_gpu=device == "cuda",
        dense_mask=_dense(run),
    )


def _planned(
    run: Run, counted: Any, best: Ceilings, device: str, each: float, flops: float, micro_batches: list[Rows], lora: Any
) -> Iterator[Finding]:
    """Say the planner's time and memory beside what was measured, each with its error."""
    from rounds.train.forecast import arithmetic, memory

    gpu, whose = _kind(best, device)
    said = arithmetic.seconds(flops, gpu, 1, "bf16") / (1 if run.kind == "conversations" else arithmetic.DPO_SHARE)
    yield measured(
        f"planned time, {run.name}",
        said * 1e3,
        "ms",
        f"measured {each * 1e3:.1f} ms: {said / each - 1:+.0%}; {whose}",
        measured_seconds=each,
    )
    what = f"planned memory, {run.name}"
    if device != "cuda":
        return
    if run.liger:
        yield not_here(what, "the planner knows no Liger")
        return
    import torch

    largest = max(micro_batches, key=lambda rows: sum(_lengths(run, rows)))
    lengths = _lengths(run, largest)
    tokens = max(lengths) * len(lengths) if run.way in ("stock", "padded") else sum(lengths)
    if run.way == "shared_prefix":
        tokens -= sum(len(row["prompt_ids"]) for row in largest)
    peak = torch.cuda.max_memory_allocated()
    need = memory.training(counted, _setting(run, device, tokens, max(lengths), lora)).peak
    yield measured(what, need / GIB, "GiB", f"measured {peak / GIB:.2f} GiB: {need / peak - 1:+.0%}", measured_bytes=peak)


def _kind(best: Ceilings, device: str) -> tuple[Any, str]:
    """Return the planner's row for this card, by its name, or one made of what was measured."""
    import torch

    from rounds.train.config.gpus import GPUS, Gpu, GpuName

    name = torch.cuda.get_device_name(0).lower().replace(" ", "") if device == "cuda" else ""
    room = (card.memory(device) or 0) / GIB
    alike: list[GpuName] = [known for known, gpu in GPUS.items() if known.partition("-")[0] in name and abs(gpu.memory - room) < 4]
    if alike:
        return GPUS[alike[0]], f"as {alike[0]}"
    return Gpu(room, best.flops / 1e12, best.flops / 1e12, best.bandwidth / 1e12), "as a card of the rate measured here"
