"""Stage `reference`: log-probabilities of both answers of every pair under the round's reference policy.

In: `policy` (the reference), `pairs` (the tokenize stage). Out: `logps.parquet` with `id`, `ref_chosen_logps` and
`ref_rejected_logps`: summed over the answer's tokens, in nats, fp32, row by row as in `pairs.parquet`. With it no
reference model is in memory while a round trains, and another beta or learning rate computes nothing again. It runs on the
cluster row and in the arithmetic of training: in another, the first step would not start from a reward of 0.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import progress
from data_prep.schema import Section
from train import adapters, logprobs, models, policy
from train.cluster import Row
from train.recipe import Lora


class Params(Section):
    lora: Lora | None = None
    """The round's, where it changes the arithmetic: weights in 4 bits, or an adapter that stays apart."""


def run(params: dict, inputs: dict[str, Path], out: Path, machine: Row) -> dict[str, Any]:
    """Score every side of every pair once."""
    models.set_threads(machine)
    lora = Params.model_validate(params).lora
    model = adapters.load_scorer(policy.read(inputs["policy"]), machine, lora, out / "cache")
    pairs = pq.read_table(inputs["pairs"] / "pairs.parquet").to_pylist()
    sides = [(pair["prompt_ids"], pair[side]) for side in ("chosen_ids", "rejected_ids") for pair in pairs]
    with models.autocast(machine):
        sums = logprobs.answer_logprobs(
            model, sides, machine.eval_batch_size, lambda done: progress.write(out, done, len(sides), "answers")
        )
    chosen, rejected = sums[: len(pairs)], sums[len(pairs) :]
    table = pa.table(
        {
            "id": [pair["id"] for pair in pairs],
            "ref_chosen_logps": pa.array(chosen, pa.float32()),
            "ref_rejected_logps": pa.array(rejected, pa.float32()),
        }
    )
    pq.write_table(table, out / "logps.parquet.partial")
    (out / "logps.parquet.partial").rename(out / "logps.parquet")
    return {
        "pairs": len(pairs),
        "mean_chosen": sum(chosen) / len(pairs),
        "mean_rejected": sum(rejected) / len(pairs),
        "precision": machine.precision,
    }
