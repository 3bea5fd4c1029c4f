"""Drop a record that repeats an earlier one, but for upper and lower case and white space.

In: records. Out: `duplicate` for the second and later of the same record, or `duplicate_prompt` with `on: prompt`. Two prompts are the
same where they ask the same, whatever is known of the answer.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

from rounds.data_prep.filters import Filter, Remembering, in_parts, texts_of
from rounds.data_prep.records import Prompt, Record, answers_of, prompt_of
from rounds.data_prep.schema import Section
from rounds.data_prep.turns import folded


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

    return Remembering(lambda records: [key for part in in_parts(records) for key in _keys(part, whole)], decide)


def _keys(records: Sequence[Record], whole: bool) -> list[bytes]:
    """Return for each record a digest of the roles and words of its prompt and, of a whole record, of its answers."""
    texts, heads, begins = list[str](), list[str](), [0]
    for record in records:
        turns, answers = prompt_of(record), answers_of(record) if whole and not isinstance(record, Prompt) else ()
        texts += [turn.content for turn in turns]
        texts += answers
        heads.append("\x1f".join([turn.role for turn in turns]))
        begins.append(len(texts))
    words = texts_of(records).words(texts, _hashed_words)
    hashes, starts = memoryview(words.values(int)[words.numbers].tobytes()), words.starts.tolist()
    keys = []
    for place, head in enumerate(heads):
        first, last = begins[place], begins[place + 1]
        # How many words each text has keeps a word at a text's end from being one at the next one's start.
        ends = ",".join([str(end - starts[first]) for end in starts[first + 1 : last + 1]])
        key = hashlib.blake2b(f"{head}\x1e{ends}\x1e".encode(), digest_size=16)
        key.update(hashes[8 * starts[first] : 8 * starts[last]])
        keys.append(key.digest())
    return keys


def _hashed_words(text: str) -> list[int]:
    """Return a hash of each word that `normalised` leaves of a text."""
    return [
        int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        for word in folded(text).split()
    ]
