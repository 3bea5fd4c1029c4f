"""The report's part on rounds that train on their policy's own answers: how it answered, who judged, what pairs came of it.

In: the finished stages of a run. Out: one row a round, of what its stages counted. No text of an answer is in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rounds.train.engine.params import AnswersParams, RankParams
from rounds.train.reports.steps import Finished

_MOSTLY, _OFTEN = 0.75, 0.5
"""Our choice of what is worth a word; nothing is decided by it."""


def own_answers(stages: Mapping[str, Finished]) -> list[dict[str, Any]]:
    """Return what is known of each round with pairs of its own, in the order of the rounds."""
    by_folder = {stage.folder.name: stage for stage in stages.values()}
    return [_row(stage, by_folder) for stage in stages.values() if stage.kind.pairs_up and not stage.skipped]


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in words what of a round's own answers tells of trouble: length that wins, answers that are all the same or cut off."""
    said = []
    for row in rows:
        pairs, answers = row["pairs"], row["answers"]
        if pairs.get("longer_chosen_share", 0.0) > _MOSTLY:
            said.append(f"{row['round']}: the longer answer was chosen in {pairs['longer_chosen_share']:.0%} of its pairs")
        if (answers.get("identical_share") or 0.0) > _OFTEN:
            said.append(f"{row['round']}: {answers['identical_share']:.0%} of its answers say the same as another to their prompt")
        if (answers.get("ended_share") or 1.0) < _MOSTLY:
            said.append(f"{row['round']}: {1 - answers['ended_share']:.0%} of its answers were cut at max_new_tokens")
    return said


def _row(stage: Finished, by_folder: Mapping[str, Finished]) -> dict[str, Any]:
    sample = by_folder[stage.input("samples") or ""]
    params = sample.spec.record
    assert isinstance(params, AnswersParams)
    wanted = params.sets[0]
    ranks = [by_folder[folder] for name, folder in stage.spec.stages().items() if name.startswith("rank.")]
    return {
        "round": stage.name.removeprefix("pairs."),
        "asked": wanted,
        "answers": sample.counts["sets"][wanted.name],
        "judges": [{"name": _name(each), "kind": _kind(each), "counts": each.counts} for each in ranks],
        "pairs": stage.counts,
    }


def _name(rank: Finished) -> str:
    return rank.name.rpartition(".")[2]


def _kind(rank: Finished) -> str:
    params = rank.spec.record
    assert isinstance(params, RankParams)
    return params.judge.kind
