"""Samples and scores in few words."""

from collections.abc import Sequence

from rounds.train.generation.samples import Sample
from rounds.train.judging.scores import Score


def sample(number: int, answer: str, tokens: int = 10, ended: bool = True, prompt_id: str = "p") -> Sample:
    """An answer; its token ids and log-probability are nobody's concern here."""
    return Sample(prompt_id, number, answer, [1] * tokens, tokens, ended, -1.0, number)


def scored(values: Sequence[float | None], prompt_id: str = "p") -> list[Score]:
    """Scores of the answers 0, 1, 2, ...; None is missing."""
    return [Score(prompt_id, number, value, "" if value is not None else "made") for number, value in enumerate(values)]
