"""Each reason drops what it names and nothing that only looks like it; on real sets hardly a row goes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rounds.data_prep import filters
from rounds.data_prep.records import Conversation, Message, Pair, Question
from rounds.data_prep.schema import FilterUse

SENTENCE = "The patient was given aspirin and went home the next day with a plan to come back if the pain returns."
FOREIGN = {
    "es": "El paciente llegó al hospital con dolor en el pecho y los médicos le dijeron que tenía que quedarse para una "
    "prueba, pero no quiso.",
    "fr": "Le patient est venu à l'hôpital pour une douleur dans la poitrine et les médecins lui ont dit que ce n'était "
    "pas grave avec ce traitement.",
    "de": "Der Patient kam mit Schmerzen in der Brust und die Ärzte sagten ihm, dass er nicht nach Hause gehen soll und "
    "eine Nacht bleiben muss.",
    "it": "Il paziente è arrivato con un dolore al petto e i medici gli hanno detto che non era grave, ma che una visita "
    "della settimana dopo era utile per lui.",
    "nl": "De patiënt kwam met pijn op de borst en de artsen zeiden dat het niet ernstig was, maar hij moet voor een "
    "controle terug naar het ziekenhuis komen.",
    "ru": "Пациент поступил в больницу с болью в груди, и врачи сказали ему остаться.",
    "zh": "患者因胸痛入院,医生建议他住院观察一晚,并在第二天早上进行复查和心电图检查。",
    "ar": "وصل المريض إلى المستشفى وهو يعاني من ألم في الصدر وقال له الأطباء إنه يجب أن يبقى",
}
KEPT = [
    "Yes.",
    "B",
    "63",
    "Option 2",
    "aspirin, clopidogrel, and a statin",
    SENTENCE,
    "- aspirin 81 mg\n- metoprolol and\n- lisinopril",
    "Sorry to hear that you are in pain. " + SENTENCE,
    "As an AI assistant, I'd be happy to help. " + SENTENCE,
    "I'm sorry, but I cannot share a patient's record: it is confidential under HIPAA. " + SENTENCE * 2,
    "The patient cannot provide a history.",
    "Acetaminophen, ibuprofen, naproxen, aspirin, celecoxib, diclofenac, etodolac, indomethacin, ketorolac, meloxicam, "
    "nabumetone, oxaprozin, piroxicam, sulindac, tolmetin, fentanyl, morphine, codeine, tramadol, methadone",
    "α-synuclein (SNCA) and β-amyloid: ≥ 5 µg, ± 2 °C, naïve patients",
    "| Drug | Dose |\n|---|---|\n| aspirin | 81 mg |\n|---|---|\n| statin | 20 mg |",
    "```python\nfor a in b:\n    print(a)\n    print(a)\n    print(a)\n```",
    "The café's owner said “no” – it’s fine…",
]
DROPPED = [
    (" \n", "empty_answer"),
    ("...", "empty_answer"),
    ("I'm sorry, but I can't assist with that.", "refusal"),
    ("Sorry, but I can't assist with that.", "refusal"),
    ("I’m sorry, but I cannot help you with this request.", "refusal"),
    ("As an AI language model, I cannot give medical advice.", "refusal"),
    ("I cannot provide that information.", "refusal"),
    *((text, "not_english") for text in FOREIGN.values()),
    ("Rest.\n" * 6 + "Drink water.", "repeated_lines"),
    ("Take the pill twice a day. " * 20, "repeated_words"),
    (SENTENCE + " " + SENTENCE + " " + SENTENCE, "repeated_words"),
    (SENTENCE + " The other reason why this should be done is the", "truncated"),
    (SENTENCE + " In the morning, after breakfast,", "truncated"),
    ("Use this:\n```python\nfor a in b:\n    print(", "truncated"),
    ("The patient\ufffd\ufffds pain\ufffd went.", "symbol_noise"),
    ("The patientâ€™s pain wasnâ€™t bad.", "symbol_noise"),
]


def talk(*answers: str) -> Conversation:
    turns = [turn for each in answers for turn in (Message("user", "Why?"), Message("assistant", each))]
    return Conversation("c", "s", tuple(turns))


def rule(**given: Any) -> filters.Filter:
    return filters.build(FilterUse.model_validate({"name": "quality", **given}), [])


@pytest.mark.parametrize("answer", KEPT)
def test_good_answers_stay(answer: str) -> None:
    assert rule()([talk(answer)]) == [None]


@pytest.mark.parametrize(("answer", "reason"), DROPPED)
def test_bad_answers_go_for_their_reason(answer: str, reason: str) -> None:
    assert rule()([talk(answer)]) == [reason]


def test_every_turn_that_is_learned_counts() -> None:
    refusal = "I'm sorry, but I can't assist with that."
    assert rule()([talk(refusal, SENTENCE), talk(SENTENCE, refusal)]) == ["refusal", "refusal"]


def test_of_a_pair_the_chosen_answer_counts_and_the_rejected_may_be_bad() -> None:
    bad = [answer for answer, reason in DROPPED if reason != "empty_answer"]
    ask = (Message("user", "Why?"),)
    assert rule()([Pair("p", "s", ask, SENTENCE, each) for each in bad]) == [None] * len(bad)
    assert None not in rule()([Pair("p", "s", ask, each, SENTENCE) for each in bad])
    assert rule()([Pair("p", "s", ask, SENTENCE, " ")]) == ["empty_answer"]


def test_of_a_question_the_right_choice_counts() -> None:
    ask = (Message("user", "Why?"),)
    answers = [rule()([Question("q", "s", ask, ("yes", "..."), right)]) for right in (0, 1)]
    assert answers == [[None], ["empty_answer"]]


def test_each_rule_can_be_turned_off() -> None:
    off = rule(
        drop_refusals=False,
        english_only=False,
        drop_truncated=False,
        max_repeated_lines=1,
        max_repeated_line_characters=1,
        max_top_ngram=1,
        max_repeated_ngrams=1,
        max_noise_share=1,
    )
    assert off([talk(answer) for answer, reason in DROPPED if reason != "empty_answer"]) == [None] * (len(DROPPED) - 2)
    with pytest.raises(ValidationError):
        rule(max_noise_share=2)


@given(st.lists(st.sampled_from(SENTENCE.lower().rstrip(".").split()), min_size=1, max_size=30, unique=True))
def test_short_english_that_ends_in_a_full_stop_stays(words: list[str]) -> None:
    assert rule()([talk(" ".join(words).capitalize() + ".")]) == [None]


@given(st.text(max_size=200), st.text(max_size=40))
def test_any_text_gets_one_answer(one: str, two: str) -> None:
    ask = (Message("user", "Why?"),)
    for verdict in rule()([talk(one), Pair("p", "s", ask, one, two), talk((two + "\n") * 9)]):
        assert verdict is None or isinstance(verdict, str)


def test_hardly_a_row_of_good_sets_goes(shared_data: Path) -> None:
    def rows(path: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (shared_data / path).read_text().splitlines()]

    medquad = [talk(row["answer"]) for row in rows("medquad/medquad_answered.jsonl")[::5]]
    notes = [talk(row["section_text"]) for row in rows("mts_dialog/mts_dialog_train.jsonl")]
    safe = [talk(row["safe_response"]) for row in rows("med_safety_bench/med_safety_train.jsonl")]
    assert sum(verdict is not None for verdict in rule()(medquad)) / len(medquad) < 0.005
    assert Counter(rule()(notes)) == {None: len(notes)}
    assert set(rule()(safe)) == {None, "refusal"}
    assert Counter(rule()(safe))["refusal"] / len(safe) < 0.05
