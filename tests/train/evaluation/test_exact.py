"""Right answers are told as lm-eval's tasks tell them, on the same texts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

from rounds.train.evaluation import exact

IGNORED = [",", "\\$", "(?s).*#### ", "\\.$"]
STRICT = RegexFilter("#### (\\-?[0-9\\.\\,]+)")
FLEXIBLE = RegexFilter("(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
SUMS = st.lists(st.sampled_from(["#### ", "$", "1", "72", ",", ".", "-", " ", "\n", "so", "0"]), max_size=12).map("".join)


@given(SUMS, st.sampled_from(["72", "1,172", "-1", "0.5", "$72"]))
@example("She has 3 + 4 = 7.\n#### 1,172", "1,172")
@example("The answer is $72.00.", "72.00")
@example("no number", "72")
def test_a_number_is_right_where_gsm8k_of_lm_eval_finds_it_right(answer: str, right: str) -> None:
    for rule, ours in ((STRICT, exact.number_marked), (FLEXIBLE, exact.number)):
        found = next(iter(rule.apply([[answer]], [{}])))
        score = exact_match_hf_evaluate(found, [right], regexes_to_ignore=IGNORED, ignore_case=True)["exact_match"]
        assert ours(answer, right) == bool(score)


@given(st.text(max_size=20), st.text(max_size=20))
@example("Aspirin.", "aspirin")
@example("vitamin K", "Vitamin-K")
def test_a_choice_is_right_where_lm_eval_finds_it_right(answer: str, right: str) -> None:
    first, right = answer.strip().split("\n\n")[0].strip(), right.strip()
    score = exact_match_hf_evaluate([first], [right], ignore_case=True, ignore_punctuation=True)["exact_match"]
    assert exact.choice(answer, right) == bool(score)


def test_only_the_first_paragraph_of_a_choice_counts() -> None:
    assert exact.choice("Aspirin\n\nIt blocks cyclooxygenase.", "aspirin")
    assert not exact.choice("Aspirin is right.", "aspirin")


@pytest.mark.parametrize(
    ("right", "is_one"), [("72", True), ("-1,200.5", True), ("$5", True), ("5 mg", False), ("yes", False), ("", False)]
)
def test_what_is_right_is_a_number_or_a_text(right: str, is_one: bool) -> None:
    assert exact.is_number(right) == is_one
