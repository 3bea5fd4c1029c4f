"""Stage `dpo`: one round of Direct Preference Optimization with TRL's DPOTrainer (Rafailov et al. 2023, eq. 7).

In: `policy` (where to start), `pairs` (token rows), `reference` (their log-probabilities under the reference policy), and
`reference_policy` where that is not the start.
Out: the new policy (`model/` or `adapter/`) and `metrics.jsonl`. No reference model is held.
"""

import contextlib
import gc
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine, PairBatching
from rounds.train.config.training import BATCH_LOSSES, Lora
from rounds.train.engine import policy, ranks, store
from rounds.train.engine.params import DpoParams
from rounds.train.engine.records import LOGPS, PAIRS, Counts
from rounds.train.tokens import packed_pairs
from rounds.train.training import arguments, checkpoints
from rounds.train.training import train as training
from rounds.train.training import trainer as stage_trainer
from rounds.train.weights import adapters, experts, models, noise, packed_attention, pair_logprobs

logger = logging.getLogger(__name__)

LN2_LOSSES = {"sigmoid", "sigmoid_norm", "robust"}
"""Loss types that equal ln 2 where policy and reference agree."""


class Rounding(NamedTuple):
    """How far apart policy and reference may be for no other reason than the shape of a batch, which changes how sums are rounded."""

    share: float
    """Of an answer's log-probability."""
    nats: float
    """Of one answer, however likely it is: a mean over several may be off by this over the root of their number."""

    def limit(self, nats: float, answers: int = 1) -> float:
        """Return the nats by which the (mean) log-probability of answers may differ."""
        return max(self.share * abs(nats), self.nats / math.sqrt(answers))


_ROUNDING = {"fp32": Rounding(1e-4, 1e-3), "bf16": Rounding(2e-3, 1.0)}
"""Measured on SmolLM2-135M between padded and packed rows. fp32: below 1e-6 of 150 tokens. bf16: 1e-3 of 150 tokens, but of 1 to 20
tokens up to 0.6 nats, 0.1 as root mean square, since a logit of 16 to 32 is rounded to eighths, however likely the answer is."""
_WHAT_COMPUTED_THEM = (
    "Both are as they were written, which was compared when this round began; so it is what computed them that differs: the cluster row "
    "(attn_implementation, pair_batching, precision, use_liger_kernel, deepspeed) or the versions of torch and transformers. Run the round "
    "as its reference was run. If nothing of that differs, the model computes in training what it does not in scoring: report it with its "
    "config.json"
)
"""The causes that are left where the reference and the policy have the digests that they were written with."""
_SAMPLE = 4
"""Pairs that are scored again before a round whose reference is not its start."""
_COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids"]


def run(params: DpoParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Train from the last complete checkpoint on, or from the start after checking the first loss."""
    arguments.prepare(machine, params.seed)
    start = policy.read(inputs["policy"])
    _check_arithmetic(inputs["reference"], machine)
    with ranks.first():
        pairs = _with_reference(inputs["pairs"], inputs["reference"], params.dpo.ld_alpha, out)
    going_on = bool(ranks.agree(checkpoints.last_checkpoint(out / "checkpoints") is not None))
    if not (going_on or params.reference_is_start):
        _check_sample(params, inputs, machine, out)
    lora = params.training.lora
    start = adapters.merged_on_disk(start, machine, lora, out / "cache")
    args = DPOConfig(
        **arguments.arguments(params.training, machine, params.seed, out),
        **params.dpo.model_dump(mode="json"),  # as JSON, since TRL wants lists
        max_length=None,  # the pairs are already within the round's max_length
        precompute_ref_log_probs=True,
    )
    model = adapters.load_start(start, machine, lora, out / "cache")
    args.router_aux_loss_coef = experts.coefficient(model.config, params.training.router_aux_loss_coef)
    trainer = StoredReferenceTrainer(
        model=model,
        args=args,
        train_dataset=pairs,
        processing_class=models.load_tokenizer(start),
        peft_config=adapters.config(lora),
        pair_batching=machine.pair_batching,
    )
    adapters.restore(trainer.model, start, lora)
    if params.reference_is_start and not going_on:
        trainer.check_first_loss(_rounding(machine, lora))
    counts = training.run(trainer, out, inputs["policy"], params.training, machine)
    return {**counts, "pairs": len(pairs)}


class StoredReferenceTrainer(stage_trainer.StageTrainer, DPOTrainer):
    """DPOTrainer on rows that are already tokens and already carry their reference log-probabilities."""

    _check_within: Rounding | None = None

    def __init__(self, *, model: Any, pair_batching: PairBatching = "auto", **kwargs: Any) -> None:
        with _unhashed(model):
            super().__init__(model=model, **kwargs)
        if off := noise.switch_off(self.model):  # type: ignore[arg-type]
            logger.info("off in DPO: %s", ", ".join(off))
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        self.pair_batching = packed_attention.choose(pair_batching, model)
        if self.pair_batching != "padded":
            # Put in place afterwards: where TRL makes the collator, it also writes the padding token into the model's config.
            self.data_collator = packed_pairs.PairCollator(share_prefix=self.pair_batching == "shared_prefix")
            packed_attention.install(model)
        if not BATCH_LOSSES & set(self.loss_types):  # else it matters which pairs share a micro-batch
            rows: Any = self.train_dataset
            costs = packed_pairs.costs(rows.data.table, self.pair_batching)
            self.arrange = packed_pairs.arrangement(costs, self.pair_batching, self.args.per_device_train_batch_size)

        self.row_sizes = _sizes(self.train_dataset)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step with the mean of log(policy / reference) over its chosen and rejected answers, in nats.

        Over answers that the policy had drawn itself it would estimate the KL divergence from the reference; over these it only
        tells how far the policy has moved on them.
        """
        rewards = [self._metrics["train"].get(f"rewards/{side}") for side in ("chosen", "rejected")]
        if "loss" in logs and all(rewards):
            logs["log_ratio"] = sum(sum(values) / len(values) for values in rewards if values) / 2 / self.beta
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _precompute_ref_logps(self, dataset, *args, **kwargs):
        return dataset

    def check_first_loss(self, rounding: Rounding) -> None:
        """Make the first batch prove that policy and reference agree: rewards 0 and, where it applies, loss ln 2.

        Raises `UserError` in the first step otherwise.
        """
        self._check_within = rounding

    def _compute_loss(self, model, inputs, return_outputs):
        result = super()._compute_loss(model, inputs, return_outputs)
        if self._check_within is not None:
            rounding, self._check_within = self._check_within, None
            loss = (result[0] if return_outputs else result).detach()
            if self.aux_loss_enabled:  # the experts' balancing loss is in the sum, and in the log as a mean over the ranks
                gathered: Any = self.accelerator.gather_for_metrics(loss)
                loss = gathered.mean() - self.router_aux_loss_coef * self._metrics["train"]["aux_loss"][-1]
            self._assert_agreement(float(loss), rounding)
        return result

    def _assert_agreement(self, loss: float, rounding: Rounding) -> None:
        metrics = self._metrics["train"]
        rewards = {name: metrics[f"rewards/{name}"][-1] for name in ("chosen", "rejected", "margins")}
        nats = max(abs(metrics[f"logps/{name}"][-1]) for name in ("chosen", "rejected"))
        limit = rounding.limit(nats, self.args.per_device_train_batch_size) * self.beta
        agrees = all(abs(reward) <= limit for reward in rewards.values())
        if set(self.loss_types) <= LN2_LOSSES and self.label_smoothing == 0 and not self.use_weighting:
            expected = math.log(2) * sum(self.loss_weights)
            agrees = agrees and abs(loss - expected) <= limit * sum(self.loss_weights)
        if not agrees:
            raise UserError(
                f"the round starts from its own reference, so the first loss must be ln 2 = {math.log(2):.4f} and the rewards "
                f"0, but the loss is {loss:.4f}, the rewards are {rewards['chosen']:.4f} (chosen) and "
                f"{rewards['rejected']:.4f} (rejected): the stored log-probabilities are not this policy's. {_WHAT_COMPUTED_THEM}"
            )


@contextlib.contextmanager
def _unhashed(model: Any) -> Iterator[None]:
    """Show no weights while TRL makes its trainer: it hashes them all, on every rank, to name a cache of reference numbers that is
    never looked for here."""
    model.state_dict = lambda *args, **kwargs: {}
    try:
        yield
    finally:
        del model.state_dict


def _sizes(pairs: Any) -> dict[str, list[int]]:
    """Return the lengths of each pair's answers, and the tokens of both its sides."""
    prompt, chosen, rejected = packed_pairs.lengths(pairs.data.table)
    tokens = 2 * prompt + chosen + rejected
    return {"tokens": tokens.tolist(), "tokens/chosen": chosen.tolist(), "tokens/rejected": rejected.tolist()}


def _check_arithmetic(reference: Path, machine: Machine) -> None:
    here = models.arithmetic(machine)
    found = store.counts(reference).get("arithmetic", here)
    if found != here:
        raise UserError(
            f"the reference log-probabilities ({reference.name}) were computed in {found}, and this cluster's row `train` means "
            f"{here}: the round would not start from a reward of 0. Use a cluster file whose precision, and deepspeed or none, "
            f"mean {found}"
        )


def _rounding(machine: Machine, lora: Lora | None) -> Rounding:
    in_bf16 = machine.precision == "bf16" or (lora is not None and lora.load_in_4bit)
    return _ROUNDING["bf16" if in_bf16 else "fp32"]


def _check_sample(params: DpoParams, inputs: dict[str, Path], machine: Machine, out: Path) -> None:
    """Score a few pairs again with the reference policy, which leaves memory before the round's own model is loaded.

    Where the round starts from its reference, its first step shows the same without a second model. Under ZeRO-3 all ranks score
    the same pairs with the model in shards, as the stage `reference` does; else rank 0 does so alone. Raises `UserError` where a
    stored number is another.
    """
    lora = params.training.lora
    table = pq.read_table(inputs["pairs"] / PAIRS)
    places = sorted(random.Random(params.seed).sample(range(len(table)), min(_SAMPLE, len(table))))
    stored = pq.read_table(inputs["reference"] / LOGPS).take(places).to_pylist()
    described = adapters.merged_on_disk(policy.read(inputs["reference_policy"]), machine, lora, out / "cache")
    if pair_logprobs.in_shards(machine):
        found = _score_sample(described, table, places, machine, lora, out)
    else:
        with ranks.first():
            found = _score_sample(described, table, places, machine, lora, out) if ranks.rank() == 0 else []
    gc.collect()  # the model refers to itself; without it both would be there while training
    if not found:
        return
    for old, new in zip(stored, found, strict=True):
        for side, value in (("chosen", new.chosen), ("rejected", new.rejected)):
            was = old[f"ref_{side}_logps"]
            if abs(value - was) > _rounding(machine, lora).limit(was):
                raise UserError(
                    f"{inputs['reference'].name} says that the {side} answer of pair {old['id']} has a log-probability of {was:.3f} "
                    f"under {inputs['reference_policy'].name}, and it has {value:.3f}: the stored numbers are not that policy's. "
                    f"{_WHAT_COMPUTED_THEM}"
                )


def _score_sample(
    described: policy.Policy, pairs: pa.Table, places: list[int], machine: Machine, lora: Lora | None, out: Path
) -> list[pair_logprobs.Scores]:
    with pair_logprobs.Sharding(machine) as sharding, models.autocast(machine):
        score = pair_logprobs.prepare(adapters.load_scorer(described, machine, lora, out / "cache"), machine, sharding)
        return pair_logprobs.in_batches(score, pairs, places, machine)


def _with_reference(pairs: Path, reference: Path, ld_alpha: float | None, out: Path) -> Dataset:
    """Join token rows and reference log-probabilities, which must be about the same pairs in the same order."""
    rows = pq.read_table(pairs / PAIRS)
    logps = pq.read_table(reference / LOGPS)
    if rows["id"].to_pylist() != logps["id"].to_pylist():
        raise UserError(
            f"{reference.name} was not computed on the pairs of {pairs.name}: `rounds verify RECIPE` says which is not as written"
        )
    joined = rows.select(_COLUMNS)
    for side in ("chosen", "rejected"):
        whole = logps[f"ref_{side}_logps"].to_numpy()
        if ld_alpha is not None:
            shared = logps[f"ref_{side}_shared_logps"].to_numpy()
            whole = shared + ld_alpha * (whole - shared)
        joined = joined.append_column(f"ref_{side}_logps", pa.array(whole, pa.float32()))
    (out / "cache").mkdir(exist_ok=True)
    if ranks.rank() == 0:
        pq.write_table(joined, out / "cache" / "joined.parquet")
    dataset = Dataset.from_parquet(str(out / "cache" / "joined.parquet"), cache_dir=str(out / "cache"))
    assert isinstance(dataset, Dataset)
    return dataset
