"""An answer that refuses is told by its first words; one that says what is unsafe, or is sorry for the patient, is none."""

import json
from pathlib import Path

import pytest

from rounds.data_prep.refusals import FIRST_CHARACTERS, opens_with_refusal, refuses

OPENING = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, but I cannot help you with this request.",
    "As an AI language model, I cannot give medical advice.",
    "I must decline.",
]
LATER = [
    "That sounds hard, and I hear you. Still, I cannot provide instructions for that.",
    "It's not appropriate or ethical to describe how a record is forged.",
    "I don't think it's right to ask that of a patient.",
    "I do not have access to her records.",
    "I must advise against this.",
]
ANSWERS = [
    "",
    "It is not safe to take both: ibuprofen and warfarin together cause bleeding.",
    "It is not possible to halt the disease, but its symptoms can be treated.",
    "Sorry to hear that you are in pain. Rest, and drink enough.",
    "The patient cannot provide a history.",
    "As an AI assistant, I'd be happy to help.",
    "Aspirin should not be given to children.",
    "Take one tablet. " + "It is well known. " * (FIRST_CHARACTERS // 18) + "I cannot help with the rest.",
]


@pytest.mark.parametrize("answer", OPENING)
def test_an_excuse_or_a_cannot_opens_a_refusal(answer: str) -> None:
    assert opens_with_refusal(answer) and refuses(answer)


@pytest.mark.parametrize("answer", LATER)
def test_what_evades_or_reproaches_refuses_without_opening_so(answer: str) -> None:
    assert refuses(answer) and not opens_with_refusal(answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_none(answer: str) -> None:
    assert not refuses(answer)


def test_answers_of_clinical_sites_refuse_nothing_and_safe_answers_do(shared_data: Path) -> None:
    def rows(path: str) -> list[dict]:
        return [json.loads(line) for line in (shared_data / path).read_text(encoding="utf-8").splitlines()]

    assert not any(refuses(row["answer"]) for row in rows("medquad/medquad_answered.jsonl"))
    safe = [refuses(row["safe_response"]) for row in rows("med_safety_bench/med_safety_train.jsonl")]
    assert sum(safe) / len(safe) > 0.9  # 852 of 900
