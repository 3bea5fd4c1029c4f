"""Drop a record that holds a held-out prompt, as it is or re-told with small edits.

In: records, and the run's held-out records. Out, with the held-out record's source, so that counts are by benchmark:

- `heldout_prompt_<source>`: the record's prompt is the held-out prompt, by its id in the set that both come from, or as
  a whole by its words, case and punctuation aside; a question in any phrasing that training asks it in;
- `overlaps_<source>`: a turn or an answer of the record tells a held-out prompt again, or a user turn is a short one.

Re-told prompts are found in two steps. Runs of `ngram` words that few held-out texts share name up to three candidates
for each text of a record. A candidate is then compared by pairs of neighbouring words, each of which counts 1 / (the
number of held-out texts with that pair), so that "comes to the physician because of" counts next to nothing; what the
two share must be `min_shared` of the smaller one, and not too little in all. Numbers count as one word whatever their
value. Choices of twice `min_words` and more are held-out
texts too; a shorter one is a fact that any text may state. System turns of
held-out records are left out: many records share them.
"""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from rounds.data_prep.filters import Filter, in_parts, texts_of
from rounds.data_prep.records import Message, Prompt, Question, Record, answers_of, prompt_id, prompt_of
from rounds.data_prep.render import phrasings
from rounds.data_prep.schema import Between, Section
from rounds.data_prep.turns import folded, normalised
from rounds.data_prep.words import Words

_WORD = re.compile(r"\w+")
_MARKS = re.compile(r"[^\w\x00-\x7f]+")
# What stands before an option, "A." or "1)": one exam is printed with letters, another with numbers or dashes. Of MMLU's 845
# medical questions in our training phrasings 66 were not found without this, 9 with it, and none with all phrasings known.
_OPTION = re.compile(r"\n[ \t]*\(?(?:[A-Za-z]|\d{1,2})[.):][ \t]+")
# Lower-case letters stay, digits become 0, other ASCII a space; bytes of longer characters stay, as parts of words.
_TO_WORDS = bytes(code if code >= 128 or chr(code).islower() else 48 if chr(code).isdigit() else 32 for code in range(256))
# The id of a prompt is a digest or the like; shorter ones are counters that two unrelated sets can share.
_MIN_ID_LENGTH = 16


class Settings(Section):
    """What is taken for the same text; measured by scripts/bench_decontaminate."""

    # Med42's authors take 8; 5, because each swapped word breaks all runs over it. Not varied.
    ngram: Annotated[int, Between(5, 100, "shorter runs are in every text, longer ones only in copies")] = 5
    """Words in a run that makes two texts candidates; fewer find more edits and cost time."""
    # The longest run that GPT-3 (Brown et al. 2020, appendix C) asks for: its N is within 8 and 13. Not varied.
    min_words: Annotated[int, Between(5, 10_000, "a turn of fewer words is in too many texts")] = 13
    """A held-out prompt without a turn this long (or `ngram`) counts only where a user turn is it as a whole."""
    # On part `tuning`, in a prototype of the same rule: 99.4 % of re-told vignettes are found at 0.15, 99.1 % at 0.20 and
    # 97.3 % at 0.30; of 5,754 clean texts 34, 20 and 15 are dropped.
    min_shared: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Smallest weighted share of word pairs in common; higher keeps more texts on the same subject, and more leaks."""
    # Same prototype, at a share of 0.15: without it 117 of the clean texts are dropped, with it 34.
    min_weight: Annotated[float, Between(0, 10_000, "the weight of a pair of words is 1 at most")] = 4.0
    """Smallest weight of all word pairs in common: 4 pairs that no other held-out text has, or as many as come to it."""


def build(settings: Section, heldout: Sequence[Record]) -> Filter:
    """Return the filter for these held-out records; without any it keeps every record."""
    assert isinstance(settings, Settings)
    size = max(settings.ngram, settings.min_words)
    ids: dict[str, str] = {}
    prompts: dict[bytes, dict[str, tuple[str, bool]]] = {}
    texts: dict[tuple[bytes, ...], str] = {}
    for record in heldout:
        turns = _turns(prompt_of(record))
        choices = record.choices if isinstance(record, Question | Prompt) else ()
        words = [tuple(_words(text)) for text in turns]
        long = [each for each in words if len(each) >= size]
        is_short = not long
        for each in (*long, *(each for each in map(tuple, map(_words, choices)) if len(each) >= 2 * size)):
            texts.setdefault(each, record.source)
        asked = phrasings(record) if isinstance(record, Question) else turns[-1:]
        for whole in (" ".join([*turns[:-1], each]) for each in asked):
            prompts.setdefault(_key(_words(whole)), {}).setdefault(_form(whole), (record.source, is_short))
        if name := _prompt_id(record):
            ids.setdefault(name, record.source)
    from rounds.data_prep.filters._run_index import RunIndex  # with numpy, for which planning has no use

    index = RunIndex.build(texts, settings) if texts else None

    shapes = {_shape(key.split()) for key in prompts}

    def known(record: Record, turns: Sequence[list[bytes]]) -> str | None:
        """Tell what the record is by id or, with the words of its turns, as a whole."""
        if source := ids.get(_prompt_id(record)):
            return f"heldout_prompt_{source}"
        spoken = _spoken(prompt_of(record))
        asked = [place for place, turn in enumerate(spoken) if turn.role == "user"]
        keys = [_key(each) for each in turns]
        for place, key in [(-1, _key(keys)), *((place, keys[place]) for place in asked if len(turns) > 1)]:
            if found := prompts.get(key):
                text = " ".join(turn.content for turn in spoken) if place < 0 else spoken[place].content
                source, is_short = found.get(_form(text), ("", False))
                if source and (is_short or place < 0):
                    return f"overlaps_{source}" if is_short else f"heldout_prompt_{source}"
        return None

    def verdicts(records: Sequence[Record]) -> list[str | None]:
        texts, begins, spoken = list[str](), [0], list[int]()
        for record in records:
            turns = _turns(prompt_of(record))
            system = [turn.content for turn in prompt_of(record) if turn.role == "system"]
            texts += map(_without_options, (*turns, *answers_of(record), *system))
            spoken.append(len(turns))
            begins.append(len(texts))
        words = texts_of(records).words(texts, _words_of_piece)
        found: list[str | None] = []
        for record, start, count, is_likely in zip(records, begins, spoken, _likely(words, begins, spoken, shapes), strict=False):
            is_asked = is_likely or (ids and _prompt_id(record) in ids)
            found.append(known(record, [words.of(text) for text in range(start, start + count)]) if is_asked else None)
        if index:
            rows = [row for row, verdict in enumerate(found) for _ in range(begins[row], begins[row + 1])]
            chosen = [text for text, row in enumerate(rows) if found[row] is None and words.length(text) >= size]
            best: dict[int, tuple[float, str]] = {}
            for text, share, source in index.search(words, chosen):
                best[rows[text]] = max(best.get(rows[text], (0.0, "")), (share, source))
            for row, (_, source) in best.items():
                found[row] = f"overlaps_{source}"
        return found

    return lambda records: [each for part in in_parts(records) for each in verdicts(part)] if heldout else [None] * len(records)


def _likely(words: Words[bytes], begins: Sequence[int], spoken: Sequence[int], shapes: set[tuple]) -> list[bool]:
    """Tell of which records the prompt or a turn may be one of these shapes; a record's turns come first among its texts."""
    own = words.shapes()
    found = []
    for start, count in zip(begins, spoken, strict=False):
        turns = own[start : start + count]
        whole = (sum(each[0] for each in turns), turns[0][1], turns[-1][2]) if turns else _shape(())
        found.append(whole in shapes or (count > 1 and any(each in shapes or not each[0] for each in turns)))
    return found


def _shape(words: Sequence[bytes]) -> tuple[int, bytes | None, bytes | None]:
    """Return what is quickly told of words: how many, the first, and the last."""
    return (len(words), words[0], words[-1]) if words else (0, None, None)


def _without_options(text: str) -> str:
    return _OPTION.sub("\n", text) if "\n" in text else text


def _words(text: str) -> list[bytes]:
    """Return a text's words in lower case without punctuation and with 0 for each digit, in a few passes in C."""
    return _words_of_piece(_without_options(text))


def _words_of_piece(text: str) -> list[bytes]:
    text = folded(text)
    if not text.isascii():
        text = _MARKS.sub(" ", text)
    return text.encode("utf-8", "surrogatepass").translate(_TO_WORDS).split()


def _spoken(prompt: Sequence[Message]) -> list[Message]:
    return [turn for turn in prompt if turn.role != "system"]


def _turns(prompt: Sequence[Message]) -> list[str]:
    return [turn.content for turn in prompt if turn.role != "system"]


def _key(words: Sequence[bytes]) -> bytes:
    return b" ".join(words)


def _form(text: str) -> str:
    """Return what two equal prompts share: their words with numbers as they are, or the marks of a text without words."""
    return " ".join(_WORD.findall(folded(_OPTION.sub("\n", text)))) or normalised(text)


def _prompt_id(record: Record) -> str:
    """Return the id of the record's prompt where it is one that no other set has, or nothing."""
    found = prompt_id(record)
    return found if len(found) >= _MIN_ID_LENGTH else ""
