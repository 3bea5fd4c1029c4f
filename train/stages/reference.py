"""Stage `reference`: log-probabilities of both answers of every pair under the round's reference policy.

In: `policy` (the reference), `pairs` (the tokenize stage). Out: `logps.parquet`, in nats, fp32, row by row as in
`pairs.parquet`: `id`, and for chosen and rejected `ref_*_logps`, summed over the answer's tokens, and `ref_*_shared_logps`,
summed over as many of its first tokens as the shorter answer has (for TRL's `ld_alpha`). With it no reference model is in
memory while a round trains, and another beta or learning rate computes nothing again.

It runs on the cluster row and in the arithmetic of training: in another, the first step would not start from a reward of 0.
How many ranks compute it, and in which batches, changes nothing but the last bits of a sum.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep import progress
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import Machine
from rounds.train.engine import digests, policy, ranks
from rounds.train.engine.params import ReferenceParams
from rounds.train.engine.records import LOGPS, PAIRS, Counts
from rounds.train.weights import adapters, models, pair_logprobs


def run(params: ReferenceParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Score every side of every pair once; a run that was interrupted goes on with the blocks that are missing."""
    models.set_threads(machine)
    lora = params.lora
    pairs = pq.read_table(inputs["pairs"] / PAIRS)

    def tell(done: int) -> None:
        if ranks.rank() == 0:
            progress.write(out, done, len(pairs), "pairs")

    described = adapters.merged_on_disk(policy.read(inputs["policy"]), machine, lora, out / "cache")
    sharding = pair_logprobs.Sharding(machine)
    score = pair_logprobs.prepare(adapters.load_scorer(described, machine, lora, out / "cache"), machine, sharding)
    with models.autocast(machine):
        scores = pair_logprobs.in_blocks(score, pairs, machine, out / "cache", tell)
    if ranks.rank() == 0:
        columns = map(list, zip(*scores, strict=True))
        names = pair_logprobs.SCHEMA.names[1:]
        table = pa.table({"id": pairs["id"], **dict(zip(names, columns, strict=True))}, pair_logprobs.SCHEMA)
        with whole(out / LOGPS) as partial:
            pq.write_table(table, partial)
    return {
        "pairs": len(pairs),
        "mean_chosen": sum(each.chosen for each in scores) / len(pairs),
        "mean_rejected": sum(each.rejected for each in scores) / len(pairs),
        "arithmetic": models.arithmetic(machine),
        "pairs_digest": digests.file_digest(inputs["pairs"] / PAIRS),
    }
