"""Numbers with their units, as clinical texts write them: which of a reference's stand in an answer, and which the answer invents.

In: texts. Out: sets of quantities, and shares of them. A rule without a model: it knows digits, the words for numbers below 1,000, ranges,
dates and pressures (each of their parts is a number), levels and grades such as L5 or A1, and the commonest units. Marks of numbered lists
are none. It knows neither conversions (0.5 g is not 500 mg) nor whose number it is.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple


class Quantity(NamedTuple):
    """A number, or a letter with a number (l5), and its unit; without one, the unit is empty."""

    value: str
    unit: str


def quantities(text: str) -> frozenset[Quantity]:
    """Return the distinct quantities of a text."""
    marks = _running_marks(text)
    for start, end in marks if len(marks) > 1 else ():
        text = text[:start] + " " * (end - start) + text[end:]
    text = _LIST_MARK.sub(" ", text)
    return frozenset((*_in_digits(text), *_in_words(text)))


def kept(reference: str, answer: str) -> float | None:
    """Return the share of the reference's quantities that stand in the answer; None where it has none."""
    asked, given = quantities(reference), quantities(answer)
    return sum(_stands(each, given) for each in asked) / len(asked) if asked else None


def invented(answer: str, *known: str) -> float:
    """Return the share of the answer's quantities that stand in none of the known texts; 0 where it has none."""
    given, sources = quantities(answer), frozenset[Quantity]().union(*map(quantities, known))
    return sum(not _stands(each, sources) for each in given) / len(given) if given else 0.0


def _stands(asked: Quantity, given: frozenset[Quantity]) -> bool:
    """Tell whether a quantity is among others. A unit that one side leaves out is no difference: "20" of a dialogue is the note's 20 mg."""
    return any(each.value == asked.value and (each.unit == asked.unit or not each.unit or not asked.unit) for each in given)


def _in_digits(text: str) -> Iterator[Quantity]:
    for found in _DIGITS.finditer(text):
        for part in re.split(r"[/:\-–]", found["number"]):
            yield Quantity(_plain(part), _unit(found["unit"]))
    for found in _LEVEL.finditer(text):
        yield Quantity(found[1].lower() + _plain(found[2]), "")


def _plain(number: str) -> str:
    whole, _, fraction = number.replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def _in_words(text: str) -> Iterator[Quantity]:
    for found in _WORDS.finditer(text):
        hundreds, tens, ones = (_VALUES.get((found[name] or "").lower(), 0) for name in ("hundreds", "tens", "ones"))
        value, unit = hundreds * 100 + tens + ones, _unit(found["unit"])
        if value > 1 or (value == 1 and unit):  # "one of them" counts nothing
            yield Quantity(str(value), unit)


def _unit(found: str | None) -> str:
    word = (found or "").lower().replace(" ", "").replace("-", "").rstrip(".")
    return _UNITS.get(word, "")


def _running_marks(text: str) -> list[tuple[int, int]]:
    """Return where a list inside a line says 1., 2., 3. in this order."""
    marks: list[tuple[int, int]] = []
    for found in _INLINE_MARK.finditer(text):
        if int(found[1]) == len(marks) + 1:
            marks.append(found.span(1))
    return marks


_LIST_MARK = re.compile(r"^[ \t]*(?:[-*•#]+[ \t]*)?\d{1,2}[.)](?=\s|$)", re.MULTILINE)
_INLINE_MARK = re.compile(r"(?<!\S)(\d{1,2})[.)]\s+(?=[A-Z])")
_SPELLINGS = {
    "mg": "mg milligram milligrams",
    "mcg": "mcg µg μg ug microgram micrograms",
    "g": "g gm gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds #",
    "oz": "oz ounce ounces",
    "ml": "ml milliliter milliliters millilitre millilitres cc",
    "l": "l liter liters litre litres",
    "mg/dl": "mg/dl",
    "mmol/l": "mmol/l",
    "meq": "meq",
    "unit": "unit units iu",
    "mm": "mm millimeter millimeters",
    "cm": "cm centimeter centimeters",
    "inch": "inch inches",
    "foot": "foot feet",
    "mmhg": "mmhg",
    "%": "% percent",
    "bpm": "bpm",
    "degree": "° °f °c degree degrees",
    "hour": "hour hours hr hrs",
    "minute": "minute minutes min mins",
    "day": "day days",
    "week": "week weeks wk wks",
    "month": "month months",
    "year": "year years yr yrs y.o yo yearold yearsold",
    "time": "times",
    "pack": "pack packs",
    "tablet": "tablet tablets pill pills",
}
_UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_UNIT = r"(?:[ \t]?-?[ \t]?(?P<unit>" + "|".join(map(re.escape, sorted(_UNITS, key=len, reverse=True))) + r")(?![A-Za-z]))?"
_DIGITS = re.compile(rf"(?<![A-Za-z\d.,])(?P<number>\d+(?:,\d{{3}})*(?:\.\d+)?(?:[/:\-–]\d+(?:\.\d+)?)*){_UNIT}", re.IGNORECASE)
# A vertebra, a tone, a stage: the letter is part of the name. Longer names (COVID-19) are words with a number behind.
_LEVEL = re.compile(r"(?<![A-Za-z\d])([A-Za-z]{1,2})-?(\d{1,3})(?![\d])")
_SMALL_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen"""
_TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: value for value, word in enumerate(_SMALL_WORDS.split())}
_VALUES |= {word: 10 * value for value, word in enumerate(_TEN_WORDS.split(), 2)}
_SMALL = "|".join(sorted((word for word, value in _VALUES.items() if 0 < value < 20), key=len, reverse=True))
_ONES = "|".join(word for word, value in _VALUES.items() if 0 < value < 10)
_TENS = "|".join(word for word, value in _VALUES.items() if value >= 20)
_WORDS = re.compile(
    rf"(?<![\w-])(?=(?:{_SMALL}|{_TENS})\b)(?:(?P<hundreds>{_ONES})[ -]hundred(?:[ -]and)?(?:[ -]|\b))?"
    rf"(?:(?P<tens>{_TENS})(?:[ -](?=(?:{_ONES})\b))?)?(?P<ones>{_SMALL})?\b{_UNIT}",
    re.IGNORECASE,
)
