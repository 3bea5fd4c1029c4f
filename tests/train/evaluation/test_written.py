"""What a policy wrote is measured by what is known of a right answer; notes with wrong facts are caught where ROUGE sees nothing.

Covers: train/config/written.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from rounds.data_prep.records import Conversation, Kind, Message, Pair, Prompt, Question, Record
from rounds.train.config.written import METRICS
from rounds.train.evaluation import written
from rounds.train.evaluation.written import Written

NOTES = [
    "The patient is a 58-year-old with left knee pain for 2 weeks. He denies fever, chills, and swelling. BP 150/90 mmHg. "
    "No effusion of the left knee. Plan: ibuprofen 400 mg, return in 10 days.",
    "A 33-year-old woman came with cough since 4 days, without dyspnea. Lungs: rales at the right base, no wheezing. "
    "Temperature 38.5 degrees. Amoxicillin 500 mg for 7 days was given, and an X-ray of the right lung was ordered.",
]


def answer(number: int, reference: str, text: str, prompt: str = "Write the note.") -> Written:
    return Written(f"note/{number}", f"q{number}", prompt, text, len(text.split()), True, reference=reference)


def changed_numbers(note: str) -> str:
    return re.sub(r"\d+(?:\.\d+)?", lambda found: str(int(float(found[0])) + 3 + len(found[0])), note)


def dropped_negations(note: str) -> str:
    note = re.sub(r"\b[Dd]enie[sd]\b", "reports", note)
    note = re.sub(r"\b[Nn]o (?=[a-z])", "some ", note).replace("without", "with").replace("negative for", "positive for")
    return re.sub(r"\b(?:not|never) |n't\b", "", note)


def swapped_sides(note: str) -> str:
    return re.sub(r"\b(?:left|right)\b", lambda found: {"left": "right", "right": "left"}[found[0].lower()], note, flags=re.IGNORECASE)


def all_wrong(note: str) -> str:
    return swapped_sides(dropped_negations(changed_numbers(note)))


WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "numbers": (changed_numbers, "numbers"),
    "negations": (dropped_negations, "negations"),
    "sides": (swapped_sides, "sides"),
}


def means(rows: Sequence[Written]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for value in written.measure(rows):
        found[value.metric].append(value.value)
    return {metric: mean(values) for metric, values in found.items()}


def of_notes(notes: Sequence[str], make: Callable[[str], str] = str) -> dict[str, float]:
    return means([answer(number, note, make(note)) for number, note in enumerate(notes)])


@pytest.mark.parametrize("what", WRONG)
def test_wrong_facts_are_caught_where_rouge_sees_nothing(what: str) -> None:
    make, metric = WRONG[what]
    before, after = of_notes(NOTES), of_notes(NOTES, make)
    assert (before[metric], before["contradictions"], before["numbers_invented"]) == (1, 0, 0)
    assert after[metric] < 0.2 and after["rouge1"] > 0.8
    assert all(after[other] == 1 for other in WRONG if other != what)
    assert after["contradictions"] > 0.3 or what == "numbers"
    assert after["numbers_invented"] > 0.8 or what != "numbers"


# As measured: ROUGE-1 of the wrong notes, then the share of numbers, negations and sides that they keep, then contradictions.
REAL = {
    "mts_dialog/mts_dialog_validation.jsonl": ("section_text", 0.932, 0.201, 0.134, 0.089, 0.866),
    "aci_bench/aci_bench_valid.jsonl": ("note", 0.948, 0.144, 0.052, 0.348, 0.881),
}


@pytest.mark.parametrize("path", REAL)
def test_wrong_real_notes_are_caught_where_rouge_sees_nothing(path: str, shared_data: Path) -> None:
    column, *expected = REAL[path]
    rows = [json.loads(line) for line in (shared_data / path).read_text(encoding="utf-8").splitlines()]
    made = [answer(number, row[column], all_wrong(row[column]), row["dialogue"]) for number, row in enumerate(rows)]
    right = means([replace(row, answer=row.reference or "") for row in made[:10]])
    assert [right[each] for each in ("rouge1", "numbers", "negations", "sides", "contradictions")] == [1, 1, 1, 1, 0]
    wrong = means(made)
    found = [wrong[each] for each in ("rouge1", "numbers", "negations", "sides", "contradictions")]
    assert found == pytest.approx(expected, abs=0.002)
    assert wrong["rouge1"] > 2 * wrong["rouge1/floor_shuffled"] and wrong["rouge1"] > 2 * wrong["rouge1/floor_prompt"]


def test_every_answer_has_length_ending_and_whether_it_refuses() -> None:
    rows = [
        Written("a", "qa", "Why?", "I cannot help with that.", 6, True),
        Written("b", "qb", "Why?", " ", 0, False),
    ]
    found = {(value.metric, value.item): (value.value, value.higher_is_better, value.question) for value in written.measure(rows)}
    assert found == {
        ("tokens", "a"): (6, None, "qa"),
        ("ended", "a"): (1, None, "qa"),
        ("empty", "a"): (0, False, "qa"),
        ("refusal", "a"): (1, None, "qa"),
        ("tokens", "b"): (0, None, "qb"),
        ("ended", "b"): (0, None, "qb"),
        ("empty", "b"): (1, False, "qb"),
        ("refusal", "b"): (0, None, "qb"),
    }


def test_a_choice_and_a_number_are_exact_or_not() -> None:
    rows = [
        Written("choice", "1", "Which?", "aspirin.", 2, True, right="Aspirin", choices=("Aspirin", "Heparin")),
        Written("number", "2", "How many?", "3 + 4 = 7", 5, True, right="7"),
        Written("marked", "3", "How many?", "3 + 4 = 7\n#### 7", 7, True, right="7"),
        Written("option", "4", "How many?", "Of 3 and 4, 7", 7, True, right="7", choices=("5", "7")),
    ]
    found = {(value.metric, value.item): value.value for value in written.measure(rows) if value.metric.startswith("exact")}
    assert found == {
        ("exact_match", "choice"): 1,
        ("exact_match", "number"): 1,
        ("exact_match_marked", "number"): 0,
        ("exact_match", "marked"): 1,
        ("exact_match_marked", "marked"): 1,
        ("exact_match", "option"): 0,
    }


@pytest.mark.parametrize(("text", "unsafe", "safe"), [("I cannot help with that.", 1, 1), ("Press here.", 0, 0)])
def test_refusal_of_both_kinds_stands_together_and_one_answer_for_all_wins_nothing(text: str, unsafe: float, safe: float) -> None:
    rows = [Written(f"{kind}{n}", f"{kind}{n}", "?", text, 2, True, group=f"{kind}/x") for kind in ("safe", "unsafe") for n in range(5)]
    found = means(rows)
    assert (found["refusal/unsafe"], found["refusal/safe"], found["refusal_balanced"]) == (unsafe, safe, pytest.approx(0.5))
    better = {value.metric: value.higher_is_better for value in written.measure(rows)}
    assert (better["refusal/unsafe"], better["refusal/safe"], better["refusal_balanced"], better["refusal"]) == (True, False, True, None)


def test_values_do_not_depend_on_the_order_of_the_rows() -> None:
    rows = [answer(number, note, all_wrong(note)) for number, note in enumerate([*NOTES, "Cough since 2 days.", "No pain."])]
    assert sorted(written.measure(rows)) == sorted(written.measure(rows[::-1]))


def test_the_items_of_a_metric_do_not_depend_on_the_answers() -> None:
    def items(text: str) -> set[tuple[str, str]]:
        return {(value.metric, value.item) for value in written.measure([answer(n, note, text) for n, note in enumerate(NOTES)])}

    assert items("") == items(NOTES[0]) == items("5 mg on the left, no fever.")


def test_a_record_says_what_a_right_answer_is() -> None:
    system, ask = Message("system", "Be brief."), Message("user", "What helps?")
    details = json.dumps({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
    rows = {
        "reference": Conversation("1", "s", (ask, Message("assistant", "Rest."))),
        "chosen": Pair("2", "s", (ask,), "Rest.", "Run."),
        "choice": Question("3", "s", (ask,), ("Run", "Rest"), 1),
        "number": Prompt("4", "s", (ask,), "12"),
        "told": Prompt("5", "s", (system, ask), details=details, group="safe"),
    }
    made = {name: written.of(record, record.id, "q", "Rest", 1, True) for name, record in rows.items()}
    assert (made["reference"].reference, made["chosen"].reference) == ("Rest.", "Rest.")
    assert (made["choice"].right, made["choice"].choices, made["number"].right) == ("Rest", ("Run", "Rest"), "12")
    assert (made["told"].follows, made["told"].arguments, made["told"].prompt) == (("punctuation:no_comma",), ({},), "What helps?")
    assert (made["told"].group, made["told"].right, made["told"].reference) == ("safe", None, None)


def test_planning_knows_every_metric_by_the_kind_of_the_records() -> None:
    ask = (Message("user", "What helps?"),)
    rows: dict[Kind, list[Record]] = {
        "conversation": [Conversation("1", "s", (*ask, Message("assistant", NOTES[0])))],
        "pair": [Pair("1", "s", ask, NOTES[0], "Run.")],
        "question": [Question("1", "s", ask, ("Run", "Rest"), 1)],
        "prompt": [Prompt("1", "s", ask, "12", group="safe"), Prompt("2", "s", ask, "Rest", ("Rest", "Run"), group="unsafe")],
    }
    for kind, given in rows.items():
        made = [written.of(record, record.id, record.id, "Rest", 1, True) for record in given]
        found = {value.metric.split("/")[0] for value in written.measure(made)}
        if kind == "prompt":
            found |= {"prompt_strict", "instruction_strict"}  # need packages: test_instructions.py
        else:
            found.add("refusal_balanced")  # of any set whose groups say what to refuse
        assert found == set(METRICS[kind]), kind
