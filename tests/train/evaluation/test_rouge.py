"""ROUGE is the package's, and its floors are what could be handed in unread."""

import pytest
from rouge_score.rouge_scorer import RougeScorer

from rounds.train.evaluation import rouge

NOTE = "Back pain after a fall. No fever."


def test_scores_are_those_of_the_package() -> None:
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(NOTE, "A fall, then back pain.")
    assert rouge.scores(NOTE, "A fall, then back pain.") == {name: score.fmeasure for name, score in expected.items()}
    assert rouge.scores(NOTE, NOTE) == dict.fromkeys(rouge.NAMES, 1.0)
    assert rouge.scores(NOTE, "") == dict.fromkeys(rouge.NAMES, 0.0)


def test_floors_are_another_reference_the_prompt_and_the_first_sentence() -> None:
    assert rouge.floors([NOTE, NOTE, "Cough."], ["a", "b", "c"]) == [
        {"floor_prompt": "a", "floor_lead": "Back pain after a fall.", "floor_shuffled": "Cough."},
        {"floor_prompt": "b", "floor_lead": "Back pain after a fall.", "floor_shuffled": "Cough."},
        {"floor_prompt": "c", "floor_lead": "Cough.", "floor_shuffled": NOTE},
    ]


@pytest.mark.parametrize("references", [["one text"], ["the same", "the same"]])
def test_without_another_reference_there_is_no_such_floor(references: list[str]) -> None:
    assert all(set(each) == {"floor_prompt", "floor_lead"} for each in rouge.floors(references, references))
