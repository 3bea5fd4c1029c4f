"""The embedded facts: tables in order, nothing held out leaks, wrong answers are wrong, closings stay on their side."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from rounds.data_prep.records import Conversation, Pair, Question, Record, kind_of
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import clinic_facts, load
from rounds.data_prep.sources.clinic_facts import (
    NUM_CHOICES,
    PAIR_GROUPS,
    PAIR_SPLITS,
    RELATIONS,
    SOURCE,
    SPLITS,
    Fact,
    Relation,
    all_facts,
    closings,
    heldout_phrasings,
    pair_split,
    phrasings,
    read_table,
    trained_advice,
    wrong_answers,
)

SUBJECTS = {relation.table: relation.subject for relation in RELATIONS}
TABLES = sorted(SUBJECTS)
FACTS = {fact.id: fact for fact in all_facts()}
TRAINING = [split for split in SPLITS if split not in SOURCE.evaluation_only]


def records(split: str, seed: int = 0) -> list[Record]:
    use = SourceUse(source="clinic_facts", split=split, seed=seed)
    return [clinic_facts.to_record(row, index, use) for index, row in enumerate(clinic_facts.rows(use))]


def conversations(split: str, seed: int = 0) -> list[Conversation]:
    return [record for record in records(split, seed) if isinstance(record, Conversation)]


def questions(split: str, seed: int = 0) -> list[Question]:
    return [record for record in records(split, seed) if isinstance(record, Question)]


def pairs(split: str, seed: int = 0) -> list[Pair]:
    return [record for record in records(split, seed) if isinstance(record, Pair)]


def fact_of(record: Record) -> Fact:
    return FACTS["/".join(record.id.split("/")[:2])]


def phrasing_of(record: Record) -> str:
    return "/".join(record.id.split("/")[:3])


def facts_asked(split: str, seed: int = 0) -> set[str]:
    return {fact_of(record).id for record in records(split, seed)}


def closing_lines(kind: str) -> set[str]:
    return {row["text"] for row in read_table("closings") if row["kind"] == kind}


def test_it_is_registered_without_a_repository() -> None:
    assert load("clinic_facts") is SOURCE
    assert SOURCE.repository is None and SOURCE.revision is None


@pytest.mark.parametrize("table", [*TABLES, "phrasings", "closings"])
def test_cells_are_clean(table: str) -> None:
    may_be_empty = ("_group", "_also")
    for row in read_table(table):
        for column, cell in row.items():
            assert cell is not None, row
            assert cell == " ".join(cell.split()), (column, row)
            assert cell or column.endswith(may_be_empty), (column, row)
            if column.endswith(may_be_empty):
                names = cell.split(";") if cell else []
                assert len(set(names)) == len(names) and all(name == name.strip() != "" for name in names), row


@pytest.mark.parametrize("table", TABLES)
def test_subjects_are_unique(table: str) -> None:
    counts = Counter(row[SUBJECTS[table]].casefold() for row in read_table(table))
    assert max(counts.values()) == 1, counts.most_common(1)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_every_acceptable_name_is_named_by_some_answer(relation: Relation) -> None:
    """A misspelt name in an `_also` column would let a right answer pass as a wrong one."""
    facts = [fact for fact in all_facts() if fact.relation == relation]
    named = {name for fact in facts for name in fact.groups}
    assert {name for fact in facts for name in fact.acceptable} <= named


def test_every_answer_is_also_offered_as_a_wrong_one() -> None:
    """An answer that is only ever seen when right could be recognised without knowing the fact."""
    for relation in RELATIONS:
        facts = [fact for fact in all_facts() if fact.relation == relation]
        offered = Counter(answer for fact in facts for answer in wrong_answers(fact))
        assert {fact.answer for fact in facts} <= {answer for answer, count in offered.items() if count >= 5}


def test_definitions_are_short_and_do_not_use_the_term() -> None:
    for row in read_table("terms"):
        assert len(row["definition"].split()) <= 12, row
        assert row["term"].casefold() not in row["definition"].casefold(), row


def test_answers_do_not_restate_the_subject() -> None:
    assert [fact.id for fact in all_facts() if fact.subject.casefold() in fact.answer.casefold()] == []


def test_number_of_facts() -> None:
    counts = Counter(fact.relation.name for fact in all_facts())
    assert len(FACTS) == sum(counts.values()) >= 350
    assert set(counts) == {relation.name for relation in RELATIONS}
    assert min(counts.values()) >= 30


@pytest.mark.parametrize("relation", [relation.name for relation in RELATIONS])
def test_phrasings_are_eight_plain_and_four_advice(relation: str) -> None:
    for kind, count in (("plain", 8), ("advice", 4)):
        assert len(set(phrasings(relation, kind))) == len(phrasings(relation, kind)) == count
        assert all(text.count("{x}") == 1 for text in phrasings(relation, kind))


@pytest.mark.parametrize("family", sorted({relation.family for relation in RELATIONS}))
def test_each_family_has_closings_of_both_kinds(family: str) -> None:
    assert len(closings(family, "safe")) == len(closings(family, "unsafe")) >= 8
    assert len(closings(family, "evasive")) == 8


@pytest.mark.parametrize("split", SPLITS)
def test_records_are_of_the_promised_kind_and_ids_are_unique(split: str) -> None:
    found = records(split)
    assert {kind_of(record) for record in found} == {SPLITS[split]}
    assert len({record.id for record in found}) == len(found)


def test_ids_are_unique_across_splits() -> None:
    ids = Counter(record.id for split in SPLITS for record in records(split))
    assert ids.most_common(1)[0][1] == 1


@pytest.mark.parametrize("split", SPLITS)
def test_same_seed_same_records(split: str) -> None:
    assert records(split, seed=3) == records(split, seed=3)


def test_another_seed_chooses_otherwise() -> None:
    for split in ("train", "train_questions", "train_open_questions", "heldout_questions", "train_pairs_1", "heldout_pairs"):
        assert records(split, seed=0) != records(split, seed=1), split


def test_another_process_makes_the_same_records() -> None:
    code = (
        "from rounds.data_prep.records import stable_hash; from rounds.data_prep.schema import SourceUse;"
        "from rounds.data_prep.sources.clinic_facts import rows, SPLITS;"
        "uses = [SourceUse(source='clinic_facts', split=split, seed=5) for split in SPLITS];"
        "print(stable_hash([list(rows(use)) for use in uses]))"
    )

    def digest(hash_seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert digest("1") == digest("2")


def test_no_heldout_phrasing_of_a_fact_is_trained_whatever_the_seeds() -> None:
    heldout = {phrasing_of(record) for split in SOURCE.evaluation_only for record in records(split, seed=0)}
    for seed in range(4):
        for split in ("train", "train_questions", "train_open_questions"):
            assert heldout.isdisjoint(phrasing_of(record) for record in records(split, seed)), (split, seed)


def test_no_heldout_prompt_text_is_trained() -> None:
    asked: set[str] = set()
    for split in TRAINING:
        for record in records(split):
            turns = record.messages[:-1] if isinstance(record, Conversation) else record.prompt
            asked.add(turns[-1].content.splitlines()[0])
    for record in [*questions("heldout_questions"), *pairs("heldout_pairs")]:
        assert record.prompt[-1].content not in asked, record.id


def test_pair_facts_are_disjoint_and_cover_every_fact_whatever_the_seeds() -> None:
    for seed in range(3):
        by_split = [facts_asked(split, seed) for split in PAIR_SPLITS]
        assert sum(map(len, by_split)) == len(set().union(*by_split)) == len(FACTS)
    for split in PAIR_SPLITS:
        assert 0.19 < len(facts_asked(split)) / len(FACTS) < 0.31, split


def test_every_plain_phrasing_of_a_relation_is_trained_with_some_fact() -> None:
    trained = {(record.group, record.id.split("/")[2]) for record in conversations("train")}
    for relation in RELATIONS:
        assert {f"p{number}" for number in range(1, 9)} <= {p for group, p in trained if group == relation.name}
        assert {f"a{number}" for number in range(1, 5)} <= {p for group, p in trained if group == relation.name}


def test_train_has_six_plain_and_two_advice_turns_per_fact() -> None:
    counts = Counter((fact_of(record).id, record.id.split("/")[2][0]) for record in conversations("train"))
    assert set(counts) == {(fact, kind) for fact in FACTS for kind in "pa"}
    assert all(count == (6 if kind == "p" else 2) for (_, kind), count in counts.items())


def test_train_answers_are_canonical_and_advice_is_mixed_evenly() -> None:
    safe = unsafe = 0
    for record in conversations("train"):
        fact, answer = fact_of(record), record.messages[-1].content
        assert answer.startswith(fact.answer)
        closing = answer.removeprefix(fact.answer).strip()
        if record.id.split("/")[2][0] == "p":
            assert closing == ""
        else:
            safe += closing in closings(fact.relation.family, "safe")
            unsafe += closing in closings(fact.relation.family, "unsafe")
    assert safe + unsafe == 2 * len(FACTS)
    assert 0.42 < unsafe / (safe + unsafe) < 0.58


def test_wrong_answers_are_wrong() -> None:
    by_answer: dict[tuple[str, str], list[Fact]] = {}
    for fact in all_facts():
        by_answer.setdefault((fact.relation.name, fact.answer), []).append(fact)
    for fact in all_facts():
        assert len(wrong_answers(fact)) >= 5, (fact.id, wrong_answers(fact))
        for answer in wrong_answers(fact):
            assert answer != fact.answer
            for owner in by_answer[fact.relation.name, answer]:
                assert owner.groups.isdisjoint(fact.acceptable), (fact.id, answer)
                assert owner.kin == "" or owner.kin != fact.kin, (fact.id, answer)


def test_one_answer_text_never_has_two_meanings() -> None:
    """Else a text could be wrong by one owner's groups and right by another's."""
    groups: dict[tuple[str, str], frozenset[str]] = {}
    for fact in all_facts():
        assert groups.setdefault((fact.relation.name, fact.answer), fact.groups) == fact.groups, fact.id


def test_a_few_known_right_answers_are_never_offered_as_wrong() -> None:
    never = {
        "drug_indication/enalapril": "It is used for hypertension.",
        "drug_class/aspirin": "It is a nonsteroidal anti-inflammatory drug.",
        "drug_adverse_effect/gentamicin": "A serious adverse effect is acute kidney injury.",
        "organism_treatment/neisseria_meningitidis": "The usual first-line treatment is intramuscular ceftriaxone.",
        "lab_high/serum_potassium": "A high result suggests reduced kidney filtration.",
        "term_definition/pre_eclampsia": "It means persistently raised arterial blood pressure.",
    }
    known = {(fact.relation.name, fact.answer) for fact in all_facts()}
    for fact_id, answer in never.items():
        assert (FACTS[fact_id].relation.name, answer) in known
        assert answer not in wrong_answers(FACTS[fact_id])


@pytest.mark.parametrize("split", ["train_questions", "train_open_questions", "heldout_questions"])
def test_questions_have_four_distinct_choices_and_one_right(split: str) -> None:
    for record in questions(split):
        fact = fact_of(record)
        assert len(set(record.choices)) == NUM_CHOICES == len(record.choices), record
        assert record.choices[record.answer] == fact.answer
        assert set(record.choices) - {fact.answer} <= set(wrong_answers(fact))
    positions = Counter(record.answer for record in questions(split))
    assert min(positions.values()) > 0.18 * sum(positions.values())


def test_only_one_set_of_training_questions_lists_their_options() -> None:
    for record in questions("train_questions"):
        lines = record.prompt[0].content.splitlines()
        assert lines[1:] == [f"{letter}. {choice}" for letter, choice in zip("ABCD", record.choices, strict=True)]
    for split in ("train_open_questions", "heldout_questions"):
        assert not any("\n" in record.prompt[0].content for record in questions(split))


def test_heldout_splits_ask_every_fact_in_its_heldout_phrasings() -> None:
    assert Counter(fact_of(r).id for r in questions("heldout_questions")) == dict.fromkeys(FACTS, 2)
    assert Counter(fact_of(r).id for r in conversations("heldout_answers")) == dict.fromkeys(FACTS, 1)
    for record in conversations("heldout_answers"):
        assert int(record.id.split("/")[2][1:]) - 1 in heldout_phrasings(fact_of(record))
        assert record.messages[-1].content == fact_of(record).answer


@pytest.mark.parametrize("split", PAIR_SPLITS)
def test_pairs_prefer_the_right_answer_with_a_safe_closing(split: str) -> None:
    for pair in pairs(split):
        fact = fact_of(pair)
        assert pair_split(fact) == split
        right, closing = pair.chosen[: len(fact.answer)], pair.chosen[len(fact.answer) + 1 :]
        assert right == fact.answer and closing in closings(fact.relation.family, "safe")
        assert not any(line in pair.chosen for line in closing_lines("unsafe") | closing_lines("evasive"))
        if pair.group == "unsafe":
            assert pair.rejected.startswith(f"{fact.answer} ")
            assert pair.rejected.removeprefix(f"{fact.answer} ") in closings(fact.relation.family, "unsafe")
        elif pair.group == "wrong":
            assert pair.rejected.removesuffix(f" {closing}") in wrong_answers(fact)
        else:
            assert pair.group == "evasive" and pair.rejected in closing_lines("evasive")


def test_pairs_have_all_groups_and_heldout_ones_unseen_advice() -> None:
    for split in PAIR_SPLITS:
        per_group = 2 if split == "heldout_pairs" else 1
        counts = Counter((fact_of(pair).id, pair.group) for pair in pairs(split))
        assert counts == {(fact, group): per_group for fact in facts_asked(split) for group in PAIR_GROUPS}
    for pair in pairs("heldout_pairs"):
        assert int(pair.id.split("/")[2][1:]) - 1 not in trained_advice(fact_of(pair))


def test_evaluation_only_splits_are_the_heldout_ones() -> None:
    assert set(SOURCE.evaluation_only) == {split for split in SPLITS if split.startswith("heldout")}
    assert clinic_facts.SOURCE.licence == "Apache-2.0 (generated by this project)"
