"""Stage `card`: how far a judge can be believed, by its verdicts on held-out pairs.

In: `judge` (the stage that trained it, or a folder of the user's), where it has weights at hand; `preferences.<source>` (pairs). Out:
`card.json` (`judging/card.py`), and `ranks.parquet`: the score of each answer, the chosen one as number 0, the rejected one as 1.
A pair's group is what the source says is wrong with its rejected answer; where pairs come from several sources, it is `source/group`.
"""

from pathlib import Path

from rounds.data_prep import progress, records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import RewardModel
from rounds.train.engine.params import CardParams
from rounds.train.engine.records import Counts
from rounds.train.evaluation import questions
from rounds.train.generation.samples import Sample
from rounds.train.judging import card, reward_model, scores
from rounds.train.judging.scores import Score
from rounds.train.weights import models

_PREFERENCES = "preferences."


def run(params: CardParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Let the judge score both answers of every pair, and count how often the better one is preferred."""
    assert isinstance(params.judge, RewardModel)
    models.set_threads(machine)
    pairs = _pairs(inputs)
    where = str(inputs["judge"]) if "judge" in inputs else params.judge.id
    assert where
    judge = reward_model.opened(params.judge, where, machine)
    asked = [(pair.prompt, _sample(name, number, text, judge)) for name, pair in pairs.items() for number, text in _sides(pair)]
    found = reward_model.score(judge, asked, lambda done: progress.write(out, done, len(asked), "answers scored"))
    scores.check_missing(found, params.judge.max_missing_share, params.name)
    scores.write(out / scores.RANKS, found)
    several = sum(name.startswith(_PREFERENCES) for name in inputs) > 1
    tokens = [sample.tokens for _, sample in asked]
    answered = [
        _answered(name if several else "", pair, found[2 * at : 2 * at + 2], (tokens[2 * at], tokens[2 * at + 1]))
        for at, (name, pair) in enumerate(pairs.items())
    ]
    made = card.made(params.name, answered)
    if made is None:
        raise UserError(f"judge {params.name}: none of the {len(pairs):,} held-out pairs has a score of both answers")
    card.write(out, made)
    return {**card.counts(made), "cut": sum(each.reason == reward_model.CUT for each in found)}


def _pairs(inputs: dict[str, Path]) -> dict[str, records.Pair]:
    """Read the held-out pairs, each under its source and id. Raises `UserError` for two of one id: one would be lost."""
    found: dict[str, records.Pair] = {}
    for name, folder in inputs.items():
        if not name.startswith(_PREFERENCES):
            continue
        for pair in records.read_records(folder / RECORDS):
            assert isinstance(pair, records.Pair)
            key = f"{name.removeprefix(_PREFERENCES)}/{pair.id}"
            if key in found:
                raise UserError(f"two held-out pairs are called {key!r}; expected ids that differ")
            found[key] = pair
    return found


def _sides(pair: records.Pair) -> tuple[tuple[int, str], tuple[int, str]]:
    return (0, pair.chosen), (1, pair.rejected)


def _sample(name: str, number: int, text: str, judge: reward_model.Opened) -> Sample:
    """Return a published answer as if a policy had written it; its length is in the judge's tokens."""
    ids = judge.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    return Sample(name, number, text, ids, len(ids), True, 0.0, 0)


def _answered(name: str, pair: records.Pair, found: list[Score], tokens: tuple[int, int]) -> card.Answered:
    # A group that is the prompt's own id is no kind of mistake.
    group = "" if records.prompt_id(pair) else pair.group
    chosen, rejected = (each.score for each in found)
    return card.Answered(
        "/".join(each for each in (name.partition("/")[0], group) if each),
        questions.of(pair),
        None if chosen is None or rejected is None else (chosen, rejected),
        tokens,
        next((each.reason for each in found if each.score is None), ""),
    )
