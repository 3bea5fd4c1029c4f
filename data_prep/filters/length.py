"""Drop a record whose prompt or answers are too short or too long, in characters (tokens are counted in `pack`).

In: records. Out: `prompt_too_short`, `prompt_too_long`, `answer_too_short` or `answer_too_long`. There are no default
limits: what is too long depends on the model, and a limit that nobody chose would drop rows unseen. A record of kind prompt has no
answer that could be too short or too long.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import model_validator

from rounds.data_prep.filters import Filter
from rounds.data_prep.records import Prompt, Record, answers_of, prompt_of
from rounds.data_prep.schema import Between, Section

Limit = Annotated[int, Between(1, 1_000_000_000, "a text has a character, and none has more")]


class Settings(Section):
    """Limits in characters, both ends included; at least one is needed."""

    min_prompt_characters: Limit | None = None
    """Shortest prompt to keep: all its turns together."""
    max_prompt_characters: Limit | None = None
    """Longest prompt to keep."""
    min_answer_characters: Limit | None = None
    """Shortest answer to keep; for a pair both answers count."""
    max_answer_characters: Limit | None = None
    """Longest answer to keep."""

    @model_validator(mode="after")
    def _limits(self) -> "Settings":
        limits = self.model_dump()
        if not any(limits.values()):
            raise ValueError(f"filter 'length' needs at least one of {', '.join(limits)}")
        for part in ("prompt", "answer"):
            low, high = limits[f"min_{part}_characters"], limits[f"max_{part}_characters"]
            if low and high and low > high:
                raise ValueError(f"min_{part}_characters ({low}) is above max_{part}_characters ({high})")
        return self


def build(settings: Section, heldout: Sequence[Record]) -> Filter:
    """Return the filter for these limits."""
    assert isinstance(settings, Settings)
    return lambda records: [_verdict(record, settings) for record in records]


def _verdict(record: Record, limits: Settings) -> str | None:
    prompt = sum(len(message.content) for message in prompt_of(record))
    answers = [len(answer) for answer in answers_of(record)]
    if limits.min_prompt_characters and prompt < limits.min_prompt_characters:
        return "prompt_too_short"
    if limits.max_prompt_characters and prompt > limits.max_prompt_characters:
        return "prompt_too_long"
    if isinstance(record, Prompt):
        return None
    if limits.min_answer_characters and min(answers) < limits.min_answer_characters:
        return "answer_too_short"
    if limits.max_answer_characters and max(answers) > limits.max_answer_characters:
        return "answer_too_long"
    return None
