"""Drop a record whose answer is empty, cut off, a refusal, not English, repeats itself, or holds broken characters.

In: records. Out: `empty_answer`, `symbol_noise`, `refusal`, `not_english`, `repeated_lines`, `repeated_words` or
`truncated`, tried in this order. Looked at are the answers to learn from: every assistant turn, a pair's `chosen`, the
right choice of a question. A `rejected` answer may be as bad as it likes, so long as it is not empty.

Each rule would rather keep a bad answer than drop a good one: lists, one-word answers, tables and verse stay. The
language test knows letters and the little words of English and ten European languages; it needs 20 words, and takes
other languages in Latin letters for English. (py3langid knows 97, errs as seldom on long answers, calls 168 of 1,201
short notes of MTS-Dialog such as "None." another language, and is one more dependency.)
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from rounds.data_prep.filters import Filter, in_parts, texts_of
from rounds.data_prep.records import Conversation, Pair, Prompt, Record
from rounds.data_prep.refusals import opens_with_refusal
from rounds.data_prep.schema import Between, Section
from rounds.data_prep.words import Texts, Words

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Between(1, 1_000_000_000, "a text has one, and none has more")]


class Settings(Section):
    """Which answers are too bad to learn from."""

    drop_refusals: bool = True
    """False for sets that teach a model to refuse without a reason."""
    # Of 211 full refusals of GPT-4 on XSTest 182 are shorter and all boilerplate; a longer one mostly gives reasons or
    # another way, which is what a clinical model is to learn (MedSafetyBench: 882 of 900 safe answers stay).
    max_refusal_characters: Count = 200
    """A longer answer is not taken for a refusal, however it begins."""
    drop_truncated: bool = True
    """Drop answers that end in a word or a mark that ends no sentence, or inside a code block."""
    # Our choice: short answers are headings, list items or clinical shorthand more often than sentences.
    min_truncated_characters: Count = 80
    """A shorter answer is never taken for a truncated one."""
    english_only: bool = True
    """Drop answers in another script, or with another language's little words."""
    # Of 2,500 MedQuAD answers half have 40 % of these little words, 1 in 100 below 16 %, two (lists) below 8 %.
    min_english_share: Share = 0.08
    """Share of English little words from which on a text is English, whatever else it holds."""
    min_other_share: Share = 0.12
    """Share of other languages' little words that, below `min_english_share`, makes a text not English."""
    # Rae et al. 2021 (Gopher), table A1, as in datatrove's GopherRepetitionFilter: lines 0.3, their characters 0.2;
    # most frequent 2-, 3-, 4-gram 0.20, 0.18, 0.16; repeated 5- to 10-grams 0.15 to 0.10 of the characters. Those are
    # for web pages; in answers of clinical sites, which repeat a disease's name, the n-gram limits dropped good ones,
    # so the two settings of n-grams are higher here (measured: see the tests on real rows).
    max_repeated_lines: Share = 0.3
    """Share of lines that stood before in the answer."""
    max_repeated_line_characters: Share = 0.2
    """Share of characters in such lines."""
    max_top_ngram: Share = 0.3
    """Share of characters in the most frequent 2-, 3- or 4-gram of words."""
    max_repeated_ngrams: Share = 0.5
    """Share of words inside a 10-gram that stood before in the answer."""
    # Gopher's quality filter looks at documents of 50 words or more (Rae et al. 2021, appendix A1.1).
    min_repetition_words: Count = 50
    """A shorter answer is not searched for repeated words; repeated lines are looked for from four lines on."""
    # 100 of MEDEC's 511 texts hold a broken sign, and read well; 3 have more than 1 % of them.
    max_noise_share: Share = 0.01
    """Share of characters in replacement signs, private-use signs and UTF-8 that was read as Latin-1."""


def build(settings: Section, heldout: Sequence[Record]) -> Filter:
    """Return the filter for these settings."""
    assert isinstance(settings, Settings)

    def verdicts(records: Sequence[Record]) -> list[str | None]:
        learned = [_learned(record) for record in records]
        answers = [answer for each in learned for answer in each]
        seen = _look(answers, texts_of(records))
        found: list[str | None] = []
        start = 0
        for record, own in zip(records, learned, strict=True):
            found.append(_verdict(record, own, range(start, start + len(own)), seen, settings))
            start += len(own)
        return found

    return lambda records: [each for part in in_parts(records) for each in verdicts(part)]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was counted in all answers of a batch, by place: words, those that English and others use, and what may repeat.

    `noise`, `letters` and `foreign` count characters, the last ones letters of other scripts; all ASCII has none.
    """

    words: Words[str]
    lengths: list[int]
    english: list[int]
    other: list[int]
    frequent: dict[int, int]
    """Answers in which some pair of words may stand 6 times or more, and how often at most."""
    repeating: set[int]
    """Answers in which some run of ten words may stand twice."""
    noise: list[int]
    letters: list[int]
    foreign: list[int]


def _look(answers: Sequence[str], texts: Texts) -> _Seen:
    words = texts.words(answers, _words_of)
    english, other = _count_known(words)
    pairs, tens = _repeats(words)
    odd = [text for text in answers if not text.isascii()]
    counts = ([dict(zip(odd, texts.sums(odd, each), strict=True)) for each in (_noise, _letters, _foreign)]) if odd else [{}, {}, {}]
    noise, letters, foreign = ([each.get(answer, 0) for answer in answers] for each in counts)
    return _Seen(words, np.diff(words.starts).tolist(), english, other, pairs, tens, noise, letters, foreign)


def _count_known(words: Words[str]) -> tuple[list[int], list[int]]:
    """Count the words of each text that are English little words, and those that are other languages'."""
    sums = np.zeros(len(words.numbers) + 1, np.uint64)
    np.cumsum(words.values(_known)[words.numbers], out=sums[1:])
    counts = np.diff(sums[words.starts])
    return (counts & np.uint64(_ONE_OTHER - 1)).tolist(), (counts // np.uint64(_ONE_OTHER)).tolist()


def _known(word: str) -> int:
    """Return 1 for a little word of English and `_ONE_OTHER` for one of others, so that one sum counts both."""
    return (word in _ENGLISH) + _ONE_OTHER * (word in _OTHER)


def _repeats(words: Words[str]) -> tuple[dict[int, int], set[int]]:
    """Return the texts in which some pair of words may stand 6 times or more, with how often at most, and those in which a run of ten
    may stand twice.

    Equal hashes only say where something may repeat, and what does is counted by its words; where none are equal, nothing does.
    """
    codes = words.numbers.astype(np.uint64)
    owner = np.repeat(np.arange(len(words.starts) - 1, dtype=np.uint64), np.diff(words.starts))
    pairs = codes[:-1] * _FACTOR + codes[1:]
    fours = pairs[:-2] * _FACTOR * _FACTOR + pairs[2:]
    tens = (fours[:-6] * _FACTOR + fours[4:-2]) * _FACTOR + pairs[8:]
    salt = owner * _SALT
    return _often(_mixed(pairs, salt), owner), set(_twice(_mixed(tens, salt), owner))


def _mixed(hashes: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Return hashes that are equal only within a text, their high bits as good as the low ones."""
    mixed = hashes * _FACTOR
    mixed += salt[: len(mixed)]
    mixed ^= mixed >> np.uint64(32)
    mixed *= _FACTOR
    return mixed


def _often(hashes: np.ndarray, owner: np.ndarray) -> dict[int, int]:
    """Return the owners of hashes that may stand 6 times or more, and how often at most: so many stand in their place of a small table."""
    place = (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
    times = np.bincount(place, minlength=1 << _TABLE_BITS)[place]
    some = np.flatnonzero(times >= 6)
    some = some[np.argsort(times[some])]
    return dict(zip(owner[some].tolist(), times[some].tolist(), strict=True))


def _twice(hashes: np.ndarray, owner: np.ndarray) -> list[int]:
    """Return the owners of hashes that stand twice; only those that share their place of a table with another are compared."""
    place = (hashes >> np.uint64(64 - _TABLE_BITS - 3)).astype(np.int64)
    table, own = np.zeros(1 << (_TABLE_BITS + 3), np.int32), np.arange(len(place), dtype=np.int32)
    table[place] = own
    behind = table[place]
    lost = behind != own  # somebody else came to this place later
    some = np.concatenate([np.flatnonzero(lost), behind[lost]])
    some = some[np.argsort(hashes[some], kind="stable")]
    same = np.flatnonzero((hashes[some[1:]] == hashes[some[:-1]]) & (some[1:] != some[:-1]))
    return owner[some[same]].tolist()


def _verdict(record: Record, answers: Sequence[str], places: Sequence[int], seen: _Seen, settings: Settings) -> str | None:
    if any(not _WORD.search(answer) for answer in (*answers, *([record.rejected] if isinstance(record, Pair) else ()))):
        return "empty_answer"
    for answer, place in zip(answers, places, strict=True):
        if reason := _reason(answer, place, seen, settings):
            return reason
    return None


def _learned(record: Record) -> list[str]:
    if isinstance(record, Conversation):
        return [message.content for message in record.messages if message.role == "assistant"]
    if isinstance(record, Prompt):
        return []
    return [record.chosen if isinstance(record, Pair) else record.choices[record.answer]]


def _reason(answer: str, place: int, seen: _Seen, settings: Settings) -> str | None:
    if seen.noise[place] > settings.max_noise_share * len(answer):
        return "symbol_noise"
    if settings.drop_refusals and len(answer) <= settings.max_refusal_characters and opens_with_refusal(answer):
        return "refusal"
    if settings.english_only and not _is_english(place, seen, settings):
        return "not_english"
    if answer.count("\n") >= 3 and _repeats_lines(answer, settings):
        return "repeated_lines"
    if seen.lengths[place] >= settings.min_repetition_words and _repeats_words(place, seen, settings):
        return "repeated_words"
    return "truncated" if settings.drop_truncated and _is_truncated(answer, settings) else None


def _words_of(text: str) -> list[str]:
    return _words(text.lower())


def _noise(text: str) -> int:
    return 0 if text.isascii() else sum(map(len, _NOISE.findall(text)))


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _foreign(text: str) -> int:
    return 0 if text.isascii() else sum(character > "\u024f" and character.isalpha() for character in text)


def _words(text: str) -> list[str]:
    """Find what `_WORD` finds; in ASCII by cutting at every other character, which is six times as fast."""
    if not text.isascii():
        return _WORD.findall(text)
    words = text.translate(_ASCII_WORDS).split()
    if "'" not in text:
        return words
    return [found for word in words for found in (_WORD.findall(word) if "'" in word else (word,))]


_WORD = re.compile(r"\w+(?:['’]\w+)?")
_ASCII_WORDS = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) in "_'")}
# U+FFFD, private-use signs, and what UTF-8 becomes when it is read as Latin-1 or Windows-1252, such as "â€™" for "’".
_NOISE = re.compile("\ufffd|[\ue000-\uf8ff]|â(?:€[^\\s\\w]?|‰[^\\s\\w])|[ÃÂ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")
# Marks and words after which no English sentence ends. Left out are words that often end one: in, to, for, with, that.
_OPEN_END = re.compile(r"(?:[,(\[{&]|\b(?:the|an|and|or|but|of|because|your|their|its|my|our|into|than|whose|every|nor))$")
_OPEN_END_CHARACTERS = 12  # Longer than the longest of these words and the character before it.
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_LETTER = re.compile(r"[^\W\d_]")
_LIST_LINE = re.compile(r"\s*(?:[-*•·|]|\d+[.)]|[A-Za-z][.)]\s)")

_ENGLISH = frozenset(
    """the be to of and that have with a in is are was were for on as by at from or an it this which not can may will has
    had you your i if they their there these more most other when who been but also than into do does he she his her we
    our its such used use should some what how about no any all one during after before between because while""".split()  # noqa: SIM905
)
# The commonest little words of Spanish, Portuguese, French, Italian, German, Dutch, Swedish, Danish, Norwegian and
# Polish that are no English words and no Latin that medicine uses (in, per, de, post, ad stay out).
_OTHER = frozenset(
    """el los las una del que por con para como está pero más sus cuando muy sin sobre también hay fue son al lo le se
    os uma não com mais foi ao dos das pelo pela são é em na no um seu sua les des une est et dans pour qui sur pas plus
    avec sont par ce cette ont vous nous au aux ne il elle ou di che è il per gli della dei delle nel con non una sono
    anche alla und der das ist nicht mit ein eine einen sie von zu auf für dem den im auch wird bei sich werden oder nach
    het een van niet zijn voor met ook maar wordt dat deze aan bij naar och att det som är av till inte har den på kan
    med för ikke til af jeg og blir eller når nie się jest na z do że to w jak przez lub""".split()  # noqa: SIM905
) - _ENGLISH - {"no", "to", "do", "per", "plus", "sur", "pour", "den", "son", "par", "w", "z", "con", "ad", "il", "al", "le",
                "di", "de", "en", "ne", "em", "os", "na", "se", "lo", "van", "von", "met", "sin", "hay", "non", "af"}  # fmt: skip


def _is_english(place: int, seen: _Seen, settings: Settings) -> bool:
    # Greek letters of formulas and names in their own script are few beside the Latin letters around them. 20 letters and, below,
    # 20 words are our choice: of fewer, one formula, one name or one drug's name is a large share.
    if seen.letters[place] >= 20 and seen.foreign[place] > seen.letters[place] / 2:
        return False
    words = seen.lengths[place]
    if words < 20 or seen.english[place] >= settings.min_english_share * words:
        return True
    return seen.other[place] < settings.min_other_share * words


def _repeats_lines(answer: str, settings: Settings) -> bool:
    # Rules of tables have no letters, and lines of code repeat by right.
    text = _CODE.sub("", answer)
    lines = [line.strip() for line in text.split("\n") if _LETTER.search(line)]
    if len(lines) < 4:  # our choice: of three lines one that comes twice is a third already, and may be a refrain
        return False
    again = sum(count - 1 for count in Counter(lines).values())
    characters = sum((count - 1) * len(line) for line, count in Counter(lines).items())
    return again > settings.max_repeated_lines * len(lines) or characters > settings.max_repeated_line_characters * sum(map(len, lines))


def _repeats_words(place: int, seen: _Seen, settings: Settings) -> bool:
    most, is_repeating = seen.frequent.get(place, 0), place in seen.repeating
    if most:
        # No longer gram is as frequent as its pairs, nor longer than four times the longest word.
        lengths = seen.words.values(len)[seen.words.numbers[seen.words.starts[place] : seen.words.starts[place + 1]]]
        if most * 4 * int(lengths.max()) <= settings.max_top_ngram * int(lengths.sum()):
            most = 0
    if not most and not is_repeating:
        return False
    words = seen.words.of(place)
    total = sum(map(len, words))
    # Five times is how often a short answer says the name of its disease.
    for size in (2, 3, 4) if most else ():
        gram, times = Counter(zip(*(words[start:] for start in range(size)), strict=False)).most_common(1)[0]
        if times > 5 and times * sum(map(len, gram)) > settings.max_top_ngram * total:
            return True
    return is_repeating and _repeated_words(words, 10) > settings.max_repeated_ngrams * len(words)


_FACTOR, _SALT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_TABLE_BITS = 17  # twice as many places as a part of a batch has words, some of which go beyond it
_ONE_OTHER = 1 << 32


def _repeated_words(words: Sequence[str], size: int) -> int:
    """Count the words inside a run of `size` words that stood before."""
    seen: set[tuple[str, ...]] = set()
    covered, end = 0, 0
    for start, gram in enumerate(zip(*(words[start:] for start in range(size)), strict=False)):
        if gram in seen:
            covered += start + size - max(start, end)
            end = start + size
        seen.add(gram)
    return covered


def _is_truncated(answer: str, settings: Settings) -> bool:
    if answer.count("```") % 2:
        return True
    text = answer.rstrip()
    if len(text) < settings.min_truncated_characters or _LIST_LINE.match(text.rsplit("\n", 1)[-1]):
        return False
    return _OPEN_END.search(text[-_OPEN_END_CHARACTERS:]) is not None
