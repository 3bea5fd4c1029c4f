"""What is known of a right answer decides, and what cannot be read is missing, never wrong."""

import pytest

from rounds.data_prep.records import Conversation, Message, Prompt, Question
from rounds.train.config.judging import Verifiable
from rounds.train.judging import verifiable
from rounds.train.judging.scores import Score
from tests.train.judging.answers import sample

CHOICES = ("iron", "iron deficiency", "folate", "A drug")
PLAIN = Question("q1", "made", (Message("user", "What is it?"),), CHOICES, 1)
LISTED = "What is it?\n" + "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", CHOICES, strict=True))
LETTERED = Prompt("q2", "made", (Message("user", LISTED),), answer="iron deficiency", choices=CHOICES)
SUM = Prompt("q3", "made", (Message("user", "3 + 4?"),), answer="7")


def scored(record, answer: str, match: str) -> Score:
    (found,) = verifiable.score(Verifiable(kind="verifiable", match=match), [(record, sample(0, answer))])  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("answer", "plain", "lettered"),
    [
        ("Iron deficiency.", 1.0, 1.0),
        ("iron", 0.0, 0.0),
        ("It is slow. The answer is iron deficiency, as ferritin is low.", 1.0, 1.0),
        ("The answer is iron. No: the answer is **iron deficiency**.", 1.0, 1.0),
        ("B", None, 1.0),
        ("(B) iron deficiency", None, 1.0),
        ("Answer: C", None, 0.0),
        ("**B.** Iron deficiency", None, 1.0),
        ("A. iron deficiency", None, None),  # letter and text differ
        ("A patient has iron deficiency.", None, None),
        ("Z.", None, None),
        ("The answer is ironing.", None, None),
        ("", None, None),
        ("Either folate or iron deficiency.", None, None),
        ("A drug", 0.0, 0.0),
    ],
)
def test_a_choice_is_what_the_answer_names(answer, plain, lettered):
    assert scored(PLAIN, answer, "choice").score == plain
    assert scored(LETTERED, answer, "choice").score == lettered


def test_what_cannot_be_read_is_missing_with_its_reason():
    assert scored(LETTERED, "A. iron deficiency", "choice").reason == "names_several_choices"
    assert scored(LETTERED, "I do not know.", "choice").reason == "names_no_choice"
    assert scored(SUM, "7", "choice").reason == "known_answer_is_no_choice"
    assert scored(PLAIN, "7", "number").reason == "known_answer_is_no_number"
    talk = Conversation("c", "made", (Message("user", "Hi"), Message("assistant", "Hello")))
    assert {scored(talk, "Hello", match).reason for match in ("choice", "exact", "number")} == {"no_known_answer"}


def test_numbers_and_texts_are_right_or_wrong_as_in_evaluation():
    assert [scored(SUM, each, "number").score for each in ("3 and 4 are 7.", "7 is not it, 8 is", "seven")] == [1.0, 0.0, 0.0]
    assert [scored(PLAIN, each, "exact").score for each in ("iron deficiency", "Iron Deficiency!\n\nSince", "It is iron deficiency")] == [
        1,
        1,
        0,
    ]


def test_prompts_whose_answers_are_all_right_or_all_wrong_are_counted():
    rows = [Score("a", 0, 1.0), Score("a", 1, 1.0), Score("b", 0, 0.0), Score("b", 1, 0.0), Score("b", 2, None, "x")]
    rows += [Score("c", 0, 1.0), Score("c", 1, 0.0), Score("d", 0, None, "x"), Score("e", 0, 0.0)]
    assert verifiable.counts(rows) == {"prompts": 4, "all_right_share": 0.25, "all_wrong_share": 0.5}
    assert verifiable.counts([]) == {"prompts": 0, "all_right_share": None, "all_wrong_share": None}
