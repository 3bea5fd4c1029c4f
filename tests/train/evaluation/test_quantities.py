"""Numbers are found as clinical texts write them, with their units; what is kept and what is invented follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rounds.train.evaluation import quantities
from rounds.train.evaluation.quantities import Quantity


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lisinopril 20 mg a day", {("20", "mg")}),
        ("lisinopril 20mg, or twenty milligrams", {("20", "mg")}),
        ("BP 120/80 mmHg", {("120", "mmhg"), ("80", "mmhg")}),
        ("for 2-3 weeks", {("2", "week"), ("3", "week")}),
        ("a 58-year-old, 53 y.o.", {("58", "year"), ("53", "year")}),
        ("weighed 4#11oz", {("4", "lb"), ("11", "oz")}),
        ("seen 04/05/2005", {("4", ""), ("5", ""), ("2005", "")}),
        ("1,200 mL, 0.50 mg and 98.6°F", {("1200", "ml"), ("0.5", "mg"), ("98.6", "degree")}),
        ("two hundred and five mg, twenty-one days", {("205", "mg"), ("21", "day")}),
        ("one week, one of them", {("1", "week")}),
        ("A1c 7.2 %, L4-L5, G4", {("a1", ""), ("7.2", "%"), ("l4", ""), ("l5", ""), ("g4", "")}),
        ("1. Aspirin.\n2) Heparin, 5 mg.", {("5", "mg")}),
        ("1. Aspirin. 2. Heparin. 3. Nothing at 5.", {("5", "")}),
        ("someone often weighed tons", set()),
    ],
)
def test_numbers_and_their_units_are_found(text: str, found: set[tuple[str, str]]) -> None:
    assert quantities.quantities(text) == {Quantity(*each) for each in found}


def test_what_a_reference_says_is_kept_or_not() -> None:
    assert quantities.kept("20 mg for 5 days", "five days of 20 milligrams") == 1
    assert quantities.kept("20 mg for 5 days", "20 mg for 6 days") == 0.5
    assert quantities.kept("20 mg", "20 mcg") == 0
    assert quantities.kept("20 mg", "he takes 20") == 1
    assert quantities.kept("no numbers", "5 mg") is None


def test_what_neither_reference_nor_prompt_has_is_invented() -> None:
    assert quantities.invented("20 mg for 5 days", "20 mg", "since five days") == 0
    assert quantities.invented("20 mg for 5 days", "20 mg", "") == 0.5
    assert quantities.invented("nothing", "20 mg") == 0


@given(st.text(alphabet="1029 .,/-:twoen hundredg\nmLA", max_size=60))
def test_any_text_keeps_its_own_and_invents_nothing(text: str) -> None:
    assert quantities.kept(text, text) in (None, 1)
    assert quantities.invented(text, text) == 0
