"""What filter `phi` finds by fixed forms: its own rules, and Presidio's recognisers of numbers with a check.

A rule is (kind, score, pattern); where a pattern has a group, the group is the find and the rest its context.
"""

import importlib
import re
from collections.abc import Container, Iterator
from functools import cache
from typing import Any

from rounds.data_prep.filters._phi_find import Find, PhiKind
from rounds.data_prep.filters._phi_names import NAME, is_name

_PART = rf"(?:{NAME}|[A-Z]\.|[A-Z](?=\s))"
_FULL = rf"(?:{NAME})(?:[ ](?:(?:van|von|de|del|da|di|der|la|le|bin|al)[ ]){{0,2}}{_PART}){{0,2}}(?<![ ].)"
_LAST_FIRST = rf"(?:{NAME}),[ ](?:{NAME})(?:[ ][A-Z]\.?)?"
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
    ("name", 0.9, rf"\b((?:{NAME})[ ](?:[A-Z]\.[ ]?)?(?:{NAME})),?[ ](?:M\.?D|D\.?O|R\.?N|N\.?P|PA-C|Ph\.?D|DPM|DDS|LPN|CRNA|FACS|MBBS)\b"),
    ("name", 0.9, rf"(?m:^|[;,(|\t]|\.[ ]|\s{{2}})\s*(?i:{_NAME_LABEL})[ ]*:[ ]*((?:{_LAST_FIRST}|{_FULL}))(?!\w)"),
    ("name", 0.9, rf"(?m:^|[;,(|\t]|\s{{2}})\s*(?i:{_ROLE_LABEL})[ ]*:[ ]*((?:{_LAST_FIRST}|(?:{NAME})[ ](?:[A-Z]\.?[ ])?(?:{NAME})))(?=[ ]*(?:[,;)|]|$|\n|\.(?:\s|$)))"),
    ("name", 0.9, r"(?im:^|[;,(|\t])\s*(?i:patient(?: name)?|name)[ ]*:[ ]*([A-Z]{2,}(?:,?[ ][A-Z]{2,}){1,2})\b"),
    ("name", 0.8, rf"\b(?i:my name is|my name's|named|call me|this is (?:doctor|nurse))[ ]({_FULL})"),
    ("name", 0.7, rf"\b(?:[Hh]i|[Hh]ello|[Hh]ey|Dear|DEAR|[Tt]hanks|[Tt]hank you|Bye|Goodbye|Good (?:morning|afternoon|evening)),?[ ]((?:{NAME})(?:[ ](?:{NAME}))?)(?=\s*[,.!?:\n])"),
    ("name", 0.7, rf"\b(?:[Mm]y|[Hh]is|[Hh]er|[Tt]heir|[Tt]he patient's) (?:wife|husband|son|daughter|brother|sister|mother|father|mom|dad|aunt|uncle|cousin|friend|partner|kid|boss|neighbou?r),?[ ]({_FULL})"),
    ("name", 0.7, rf"\b((?:{NAME})[ ](?:[A-Z]\.[ ])?(?:{NAME}))(?:,? (?:is|was) an?|,? an?) \d{{1,3}}[- ](?:year|month|week|day)"),
    ("name", 0.7, rf"\b({NAME}),?(?: (?:is|was))? an? \d{{1,3}}[- ](?:year|month|week|day)s?[- ]old"),
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


def by_rules(text: str, kinds: Container[PhiKind], min_score: float) -> Iterator[Find]:
    """Yield what the rules of these kinds find, of at least that score."""
    digits = any(character.isdigit() for character in text)
    for kind, score, pattern in _patterns():
        if kind not in kinds or score < min_score or not (digits or kind in ("name", "url", "email")):
            continue
        for match in pattern.finditer(text):
            group = 1 if pattern.groups and kind != "date" and match.group(1) else 0
            if kind == "date" and pattern.groups == 1:
                group = 1
            if kind == "name" and not is_name(match.group(group)):
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


def by_presidio(text: str, kinds: Container[PhiKind]) -> Iterator[Find]:
    """Yield the numbers that Presidio's recognisers find and check."""
    if not _LONG_NUMBER.search(text):
        return
    for kind, recogniser in _recognisers():
        if kind not in kinds:
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
