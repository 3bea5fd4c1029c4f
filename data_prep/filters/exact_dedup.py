"""Drop a record that repeats an earlier one, but for upper and lower case and white space.

In: records. Out: `duplicate` for the second and later of the same record, or `duplicate_prompt` with `on: prompt`.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

from rounds.data_prep.filters import Filter, Remembering
from rounds.data_prep.records import Record, answers_of, prompt_of
from rounds.data_prep.schema import Section
from rounds.data_prep.turns import normalised


class Settings(Section):
    """What counts as the same."""

    on: Literal["record", "prompt"] = "record"
    """`record`: prompt and answers are the same; `prompt`: the prompt is, so one answer to each question stays."""


def build(settings: Section, heldout: Sequence[Record]) -> Filter:
    """Return a filter that remembers 16 bytes for each record it has kept."""
    assert isinstance(settings, Settings)
    whole = settings.on == "record"
    reason, seen = "duplicate" if whole else "duplicate_prompt", set[bytes]()

    def decide(keys: Sequence[bytes], places: Sequence[int]) -> list[str | None]:
        found: list[str | None] = []
        for place in places:
            found.append(reason if keys[place] in seen else None)
            seen.add(keys[place])
        return found

    return Remembering(lambda records: [_key(record, whole) for record in records], decide)


def _key(record: Record, whole: bool) -> bytes:
    texts = [f"{message.role}\x1f{normalised(message.content)}" for message in prompt_of(record)]
    answers = [normalised(answer) for answer in answers_of(record)] if whole else []
    return hashlib.blake2b("\x1e".join([*texts, "\x1d", *answers]).encode(), digest_size=16).digest()
