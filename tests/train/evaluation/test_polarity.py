"""What is denied and on which side something is: found within its clause, kept, or turned round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rounds.train.evaluation import polarity


@pytest.mark.parametrize(
    ("text", "denied", "said"),
    [
        ("Denies fever, chills, and cough. Reports fatigue.", {"fever", "chill", "cough"}, {"fatigue"}),
        ("No wheezing or dyspnea, but edema.", {"wheezing", "dyspnea"}, {"edema"}),
        ("He denies nausea and has vomiting.", {"nausea"}, {"vomiting"}),
        ("She has not had surgery", {"surgery"}, set()),
        ("The rash isn't itchy.", {"itchy"}, {"rash"}),
        ("Biopsy was negative. Negative for melanoma.", {"biopsy", "melanoma"}, set()),
        ("Constitutional: no fevers\nCardiac: murmur", {"fever"}, {"constitutional", "cardiac", "murmur"}),
        ("pain without swelling", {"swelling"}, {"pain"}),
    ],
)
def test_a_negation_reaches_to_the_end_of_its_statement(text: str, denied: set[str], said: set[str]) -> None:
    found = polarity.findings(text).denied
    assert {word for word, each in found.items() if each == {True}} >= denied
    assert {word for word, each in found.items() if each == {False}} >= said


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("left hip pain and right shoulder", {"hip": {"left"}, "pain": {"left"}, "shoulder": {"right"}}),
        ("edema in the bilateral extremities", {"extremity": set(), "extremitie": {"both"}}),
        ("a mass on the right.", {"mass": {"right"}}),
        ("He left the clinic right away. All right then.", {}),
    ],
)
def test_a_side_belongs_to_the_words_beside_it(text: str, sides: dict[str, set[str]]) -> None:
    found = polarity.findings(text).sides
    assert {word: found.get(word, set()) for word in sides} == sides and (sides or not found)


def test_what_an_answer_keeps_and_what_it_turns_round() -> None:
    reference = "Denies fever and chills. Left knee pain."
    assert polarity.kept(reference, reference) == (1, 1, 0)
    assert polarity.kept(reference, "Reports fever and chills. Left knee pain.") == (0, 1, 0.5)
    assert polarity.kept(reference, "Denies fever and chills. Right knee pain.") == (1, 0, 0.5)
    assert polarity.kept(reference, "") == (0, 0, 0)
    assert polarity.kept("Cough.", "No cough.") == (None, None, None)


def test_a_word_that_is_both_had_and_denied_contradicts_nothing() -> None:
    assert polarity.kept("No chest pain. Back pain.", "Chest ache, no back pain.").contradictions == pytest.approx(2 / 3)
    assert polarity.kept("No pain at rest. Pain on stairs.", "Pain.") == (0, None, 0)


@given(st.text(alphabet="no lefright denies.,;: \nabut't", max_size=80))
def test_any_text_keeps_its_own_and_turns_nothing_round(text: str) -> None:
    kept = polarity.kept(text, text)
    assert kept.negations in (None, 1) and kept.sides in (None, 1) and kept.contradictions in (None, 0)
