"""Stage `rank`: what one judge says of the answers that a policy gave.

In: `prompts` and `samples` (of one part of them); `judge`, the folder of its weights or the policy that judges; as `before.N` what judges
before it said, where it is only asked of prompts that none of them decided. Out: `ranks.parquet`, a score an answer or why there is none;
of a judge that compares `verdicts.parquet`, both orders kept; of an endpoint `replies.jsonl`. One stage a judge: another judge, another
rule for pairs, another way to put judges together ask nobody twice. Counts: what is missing and why, what a judge tends to, what it cost.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from rounds.data_prep import progress
from rounds.train.config.cluster import Machine
from rounds.train.engine.params import RankParams
from rounds.train.engine.records import Counts
from rounds.train.generation import asked
from rounds.train.judging import asking, scores, verdicts


def run(params: RankParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Ask the judge of each prompt that is still open. Raises `UserError` where too much is missing; what was paid for is kept."""
    answers = asked.read(inputs["prompts"], inputs["samples"])
    closed = _decided(inputs)
    wanted = [(prompt, sample) for prompt, sample in answers if prompt.id not in closed]
    where = asking.Where(params.name or params.judge.kind, inputs.get("judge"), out, machine)
    found = asking.ask(params.judge, wanted, where, lambda done: progress.write(out, done, None, "answers judged"))
    scores.write(out / scores.RANKS, found.scores)
    if found.verdicts is not None:
        verdicts.write(out / verdicts.VERDICTS, found.verdicts)
    prompts = len({prompt.id for prompt, _ in wanted})
    return {"prompts_asked": prompts, "prompts_decided_before": len(closed), **found.counts}


def _decided(inputs: Mapping[str, Path]) -> set[str]:
    """Return the prompts of which a judge before tells two answers apart."""
    values: defaultdict[tuple[str, str], set[float]] = defaultdict(set)
    for name, folder in inputs.items():
        if name.startswith("before."):
            for row in scores.read(folder / scores.RANKS):
                if row.score is not None:
                    values[name, row.prompt_id].add(row.score)
    return {prompt for (_, prompt), found in values.items() if len(found) > 1}
