"""Each instruction set, in its own columns and in the layout of its repository, becomes the records that it promises.

Three rows of our own per set. The third is one that does not fit, and its reason is named.

Covers: data_prep/sources/_alpaca, data_prep/sources/_chat, data_prep/sources/_exam, data_prep/sources/_plain,
data_prep/sources/_questions, data_prep/sources/aci_bench, data_prep/sources/cord19, data_prep/sources/headqa,
data_prep/sources/medical_flashcards, data_prep/sources/medical_instruction, data_prep/sources/mediqa, data_prep/sources/medmcqa,
data_prep/sources/medqa, data_prep/sources/medquad, data_prep/sources/mmlu_medical, data_prep/sources/mts_dialog,
data_prep/sources/natural_instructions, data_prep/sources/opengpt, data_prep/sources/pubhealth, data_prep/sources/pubmed_causal,
data_prep/sources/sciq, data_prep/sources/slim_orca, data_prep/sources/stackexchange, data_prep/sources/ultrachat.
"""

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Question, Record, kind_of
from rounds.data_prep.schema import SourceUse


def choice(record: Record) -> str:
    assert isinstance(record, Question)
    return record.choices[record.answer]


def said(record: Record) -> list[str]:
    assert isinstance(record, Conversation)
    return [message.content for message in record.messages]


@dataclass(frozen=True)
class Case:
    """Rows of a set, the file of its repository that holds them, and the answers that two of them give."""

    name: str
    split: str
    file: str
    rows: Sequence[dict[str, Any]]
    answers: tuple[str, ...]
    dropped: str
    also: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)


def turns(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"from": who, "value": what, "weight": None} for who, what in pairs]


def medmcqa(number: int, right: int, last: str = "Vitamin D") -> dict[str, Any]:
    return {
        "id": f"m{number}",
        "question": f"Which vitamin prevents scurvy? ({number})",
        "opa": "Vitamin A",
        "opb": "Vitamin B1",
        "opc": "Vitamin C",
        "opd": last,
        "cop": right,
        "choice_type": "single",
        "exp": None,
        "subject_name": "Biochemistry",
        "topic_name": "Vitamins",
    }


def alpaca(given: str, output: str, instruction: str = "Answer this question truthfully") -> dict[str, str]:
    return {"instruction": instruction, "input": given, "output": output}


def medqa(number: int, label: int) -> dict[str, Any]:
    endings = {f"ending{place}": text for place, text in enumerate(("Lumbar puncture", "Biopsy", "Rest", "Surgery"))}
    return {
        "id": f"train-{number}",
        "sent1": f"Fever for {number} days. What next?",
        "sent2": "",
        **endings,
        "label": label,
    }


def headqa(number: int, right: int, image: bytes | None = None) -> dict[str, Any]:
    answers = [{"aid": place, "atext": text} for place, text in enumerate(("The spleen.", "The liver."), start=1)]
    named = {"name": "Cuaderno_2013_1_B", "year": "2013", "category": "biology", "qid": number}
    return {**named, "qtext": f"Which organ makes bile? {number}", "ra": right, "image": image, "answers": answers}


def sciq(number: int, third: str = "neon") -> dict[str, Any]:
    wrong = {"distractor1": "helium", "distractor2": "methane", "distractor3": third}
    return {"question": f"What do {number} plants give off?", "correct_answer": "oxygen", **wrong, "support": "Light."}


def mmlu(number: int, answer: int) -> dict[str, Any]:
    choices = ["Femur", "Ulna", "Radius", "Tibia"]
    return {"question": f"Bone {number}?", "subject": "anatomy", "choices": choices, "answer": answer}


def pubhealth(number: int, label: int | str) -> dict[str, Any]:
    texts = {
        "claim": f"Honey cures asthma {number}.",
        "main_text": "No trial shows it.",
        "explanation": "None shows it.",
    }
    return {"claim_id": f"c{number}", "date_published": "May 2, 2019", **texts, "sources": "", "label": label}


def stackexchange(number: int, *scores: int) -> dict[str, Any]:
    answers = [
        {
            "answer_id": place,
            "author": "A. Writer",
            "pm_score": score,
            "selected": False,
            "text": f"<p>Answer <b>{score}</b> &amp; more.</p><ul><li>one</li><li>two</li></ul>",
        }
        for place, score in enumerate(scores)
    ]
    metadata = [f"https://health.stackexchange.com/questions/{number}", "https://health.stackexchange.com"]
    return {"qid": number, "metadata": metadata, "question": "<p>Does cold\nair cause colds?</p>", "answers": answers}


def task(name: str, inputs: str, targets: str) -> dict[str, Any]:
    return {"task_name": name, "id": f"{name}-1", "definition": "List the drugs.", "inputs": inputs, "targets": targets}


def visit(number: int, note: str) -> dict[str, Any]:
    dialogue = "[doctor] how is the knee ?\n[patient] it hurts ."
    return {"dataset": "virtassist", "encounter_id": f"D{number}", "dialogue": dialogue, "note": note}


def section(number: int, header: str, note: str) -> dict[str, Any]:
    return {
        "ID": str(number),
        "section_header": header,
        "section_text": note,
        "dialogue": "Doctor: Hm?\r\nPatient: Ow.",
    }


def orca(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": turns(("system", "You help."), ("human", question), ("gpt", answer))}


def open_orca(name: str, question: str) -> dict[str, Any]:
    return {"id": name, "system_prompt": "You help.", "question": question, "response": "..."}


ORCA = [
    orca("Name a citrus fruit.", "A lemon."),
    orca("Name a bone.", "The femur."),
    orca("Name a vein.", "The jugular."),
]
OPEN_ORCA = {"1M-GPT4-Augmented.parquet": [open_orca("cot.1", "Name a citrus fruit."), open_orca("t0.2", "Name a bone.")]}
DRUGS = "task1447_drug_extraction_ade"
CASES = [
    Case(
        "medmcqa",
        "train",
        "data/train-00000-of-00001.parquet",
        [medmcqa(1, 2), medmcqa(2, 0), medmcqa(3, 4)],
        ("Vitamin C", "Vitamin A"),
        "answer_out_of_range",
    ),
    Case(
        "medmcqa",
        "validation",
        "data/validation-00000-of-00001.parquet",
        [medmcqa(1, 2), medmcqa(2, 0), medmcqa(3, 0, "vitamin a ")],
        ("Vitamin C", "Vitamin A"),
        "repeated_choices",
    ),
    Case(
        "medical_flashcards",
        "train",
        "medical_meadow_wikidoc_medical_flashcards.json",
        [alpaca("Which nerve?", "The phrenic."), alpaca("Which bone?", "The femur."), alpaca("Why?", " ")],
        ("The phrenic.", "The femur."),
        "empty_output",
    ),
    Case(
        "stackexchange",
        "train",
        "data/health.stackexchange.com/train-00000-of-00001.parquet",
        [stackexchange(1, 0, 3, 1), stackexchange(2, 1), stackexchange(3, -1, 0)],
        ("Answer 3 & more.\n\n- one\n- two", "Answer 1 & more.\n\n- one\n- two"),
        "no_upvoted_answer",
        {"data/stackoverflow.com/train-00000-of-00001.parquet": [stackexchange(9, 5)]},
    ),
    Case(
        "medqa",
        "train",
        "train.json",
        [medqa(1, 0), medqa(2, 3), medqa(3, 7)],
        ("Lumbar puncture", "Surgery"),
        "answer_out_of_range",
    ),
    Case(
        "medqa",
        "validation",
        "dev.json",
        [medqa(1, 0), medqa(2, 3), medqa(3, -1)],
        ("Lumbar puncture", "Surgery"),
        "answer_out_of_range",
    ),
    Case(
        "cord19",
        "train",
        "medical_meadow_cord19.json",
        [alpaca("We saw bats.", "Bats"), alpaca("We saw cats.", "Cats"), alpaca("", "Nothing")],
        ("Bats", "Cats"),
        "empty_input",
    ),
    Case(
        "headqa",
        "train",
        "en/train.parquet",
        [headqa(1, 2), headqa(2, 1), headqa(3, 5)],
        ("The liver.", "The spleen."),
        "answer_out_of_range",
    ),
    Case(
        "headqa",
        "test",
        "en/test.parquet",
        [headqa(1, 2), headqa(2, 1), headqa(3, 1, b"picture")],
        ("The liver.", "The spleen."),
        "asks_about_a_picture",
    ),
    Case(
        "mediqa",
        "train",
        "medical_meadow_mediqa.json",
        [alpaca("One pill?", "One."), alpaca("Two pills?", "Two."), alpaca("Three?", "Three.", " ")],
        ("One.", "Two."),
        "empty_instruction",
    ),
    Case(
        "sciq",
        "train",
        "data/train-00000-of-00001.parquet",
        [sciq(1), sciq(2), sciq(3, "oxygen")],
        ("oxygen", "oxygen"),
        "repeated_choices",
    ),
    Case(
        "pubmed_causal",
        "train",
        "medical_meadow_pubmed_causal.json",
        [
            alpaca("Masks went with fewer colds.", "This is a directly correlative relationship"),
            alpaca("We aimed to count colds.", "This no relationship."),
            alpaca("Masks help.", "Yes"),
        ],
        ("A directly correlative relationship.", "No relationship."),
        "not_a_relationship",
    ),
    Case(
        "opengpt",
        "train",
        "opengpt.jsonl",
        [
            {"id": "1", "conversations": turns(("human", "What is a stye?"), ("gpt", "A lump."))},
            {"id": "1", "conversations": turns(("human", "And a boil?"), ("gpt", "A lump, too."))},
            {"id": "3", "conversations": turns(("human", "What?"))},
        ],
        ("A lump.", "A lump, too."),
        "last_turn_not_assistant",
    ),
    Case(
        "medquad",
        "train",
        "medDataset_processed.csv",
        [
            {"qtype": "symptoms", "Question": "What are the symptoms of Hay fever ?", "Answer": "Sneezing."},
            {"qtype": "causes", "Question": "What causes Hay fever ?", "Answer": "Pollen,\nmostly."},
            {"qtype": "causes", "Question": "What causes Flu ?", "Answer": ""},
        ],
        ("Sneezing.", "Pollen,\nmostly."),
        "empty_Answer",
    ),
    Case(
        "mmlu_medical",
        "validation",
        "anatomy/validation-00000-of-00001.parquet",
        [mmlu(1, 0), mmlu(2, 3), mmlu(3, 4)],
        ("Femur", "Tibia"),
        "answer_out_of_range",
        {
            **{f"anatomy/{split}-00000-of-00001.parquet": [mmlu(9, 1)] for split in ("dev", "test")},
            **{
                f"{subject}/validation-00000-of-00001.parquet": [mmlu(3, 4)]
                for subject in sources.load("mmlu_medical").files
                for subject in [subject.removesuffix("/*")]
                if subject != "anatomy"
            },
        },
    ),
    Case(
        "natural_instructions",
        "train",
        f"train/{DRUGS}_train.jsonl",
        [task(DRUGS, "Iron helps.", "iron"), task(DRUGS, "Iron and zinc help.", "zinc"), task("task1_other", "a", "b")],
        ("iron", "zinc"),
        "not_a_health_task",
        {"train/task1_other_train.jsonl": [task("task1_other", "a", "b")]},
    ),
    Case(
        "pubhealth",
        "train",
        "data/train-00000-of-00001.parquet",
        [pubhealth(1, "false"), pubhealth(2, "true"), pubhealth(3, "snopes")],
        ("The claim is false.", "The claim is true."),
        "no_label",
    ),
    Case(
        "medical_instruction",
        "train",
        "medicare_110k_train.json",
        [
            {"Conversation": "A conversation.\n[|Human|] Cold?\n[|AI|] Viruses.\n[|Human|] "},
            {"Conversation": "Frame.\n[|Human|] a\n[|AI|] b\n[|Human|] c\n[|AI|] d"},
            {"Conversation": "No turns at all."},
        ],
        ("Viruses.", "d"),
        "no_markers",
        {"medicare_110k_test.json": [{"Conversation": "[|Human|] t\n[|AI|] u"}]},
    ),
    Case(
        "aci_bench",
        "test2",
        "data/challenge_data/clinicalnlp_taskC_test2.csv",
        [visit(1, "CHIEF COMPLAINT\n\nKnee pain."), visit(2, "PLAN\n\nRest."), visit(3, "")],
        ("CHIEF COMPLAINT\n\nKnee pain.", "PLAN\n\nRest."),
        "empty_note",
    ),
    Case(
        "mts_dialog",
        "train",
        "Main-Dataset/MTS-Dialog-TrainingSet.csv",
        [section(1, "GENHX", "Pain."), section(2, "PLAN", "Rest."), section(3, "XYZ", "?")],
        ("Pain.", "Rest."),
        "unknown_section",
    ),
    Case("slim_orca", "cot", "oo-labeled_correct.gpt4.sharegpt.jsonl", ORCA, ("A lemon.",), "no_source_tag", OPEN_ORCA),
    Case("slim_orca", "t0", "oo-labeled_correct.gpt4.sharegpt.jsonl", ORCA, ("The femur.",), "no_source_tag", OPEN_ORCA),
    Case(
        "slim_orca",
        "train",
        "oo-labeled_correct.gpt4.sharegpt.jsonl",
        [*ORCA[:2], {"conversations": turns(("robot", "a"), ("gpt", "b"))}],
        ("A lemon.", "The femur."),
        "unknown_role",
    ),
    Case(
        "ultrachat",
        "train_sft",
        "data/train_sft-00000-of-00001.parquet",
        [
            {
                "prompt": "a",
                "prompt_id": f"p{number}",
                "messages": [{"role": "user", "content": "a"}, {"role": last, "content": f"b{number}"}],
            }
            for number, last in ((1, "assistant"), (2, "assistant"), (3, "user"))
        ],
        ("b1", "b2"),
        "turns_out_of_order",
        {"data/test_sft-00000-of-00001.parquet": [{"prompt": "x", "prompt_id": "x", "messages": [{"role": "user", "content": "x"}]}]},
    ),
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.split}")
def test_a_repository_becomes_records(case: Case, tmp_path: Path, convert) -> None:
    for name, rows in {**case.also, case.file: case.rows}.items():
        write(tmp_path / name, rows)
    use = SourceUse(source=case.name, split=case.split, path=str(tmp_path))
    records, reasons = convert(use)
    assert set(reasons) == {case.dropped}
    answers = tuple(choice(each) if isinstance(each, Question) else said(each)[-1] for each in records)
    assert answers == case.answers
    assert len({record.id for record in records}) == len(records)
    assert {record.source for record in records} == {case.name}
    assert {kind_of(record) for record in records} == {sources.load(case.name).kind(use)}
    assert convert(use)[0] == records


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.split}")
def test_a_saved_dataset_gives_the_same_records(case: Case, tmp_path: Path, convert) -> None:
    """`path` may be a folder of `save_to_disk`, of one split or of several, in place of a mirror of the repository."""
    for name, rows in {**case.also, case.file: case.rows}.items():
        write(tmp_path / "mirror" / name, rows)
    rows = Dataset.from_list([dict(row) for row in case.rows])
    split = "train" if case.name == "slim_orca" else case.split
    DatasetDict({split: rows, "another": rows.select([0])}).save_to_disk(tmp_path / "several")
    rows.save_to_disk(tmp_path / "single")
    found = {}
    for folder in ("mirror", "several", "single"):
        if case.name == "slim_orca":
            for name, more in case.also.items():
                write(tmp_path / folder / name, more)
        records, reasons = convert(SourceUse(source=case.name, split=case.split, path=str(tmp_path / folder)))
        found[folder] = records, set(reasons)
    assert found["several"] == found["single"] == found["mirror"]


def test_every_instruction_set_has_a_case() -> None:
    other = {"clinic_facts", "file", "pubmedqa", "snorkel", "ultrafeedback"}
    measured = {"gsm8k", "ifeval", "med_safety", "mmlu_pro", "toxigen", "usmle", "xstest"}  # test_closed_benchmarks, test_prompt_benchmarks
    assert {case.name for case in CASES} == set(sources.names()) - other - measured


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.split}")
def test_a_row_without_its_columns_is_named(case: Case) -> None:
    source = sources.load(case.name)
    with pytest.raises(sources.RowError, match="missing_column"):
        source.to_record({}, 0, SourceUse(source=case.name, split=case.split))


def test_the_right_option_of_medmcqa_counts_from_one_on_github(tmp_path: Path, convert) -> None:
    from_one = write(tmp_path / "dev.json", [medmcqa(1, 3), medmcqa(2, 4)])
    from_zero = write(tmp_path / "rows.parquet", [medmcqa(1, 2), medmcqa(2, 0)])
    folder = write(tmp_path / "github" / "dev.json", [medmcqa(1, 3), medmcqa(2, 4)]).parent
    unclear = write(tmp_path / "unclear.jsonl", [medmcqa(1, 2)])
    found = [
        [choice(each) for each in convert(SourceUse(source="medmcqa", split="validation", path=str(path)))[0]]
        for path in (from_one, from_zero, folder)
    ]
    assert found == [["Vitamin C", "Vitamin D"], ["Vitamin C", "Vitamin A"], ["Vitamin C", "Vitamin D"]]
    with pytest.raises(UserError, match="from 0 to 3 or from 1 to 4"):
        convert(SourceUse(source="medmcqa", split="validation", path=str(unclear)))


def test_medqa_reads_options_by_letter_and_joins_the_vignette(tmp_path: Path, convert) -> None:
    options = {"A": "Rest", "B": "Surgery"}
    rows = [
        {
            "id": 0,
            "context": ["A knee hurts.", "It is red."],
            "question": "What next?",
            "options": options,
            "answer_idx": "B",
        },
        {"id": 1, "context": [], "question": "What next?", "options": options, "answer_idx": "C"},
    ]
    path = write(tmp_path / "dev.jsonl", rows)
    records, reasons = convert(SourceUse(source="medqa", split="validation", path=str(path)))
    assert [choice(record) for record in records] == ["Surgery"]
    assert records[0].prompt[-1].content.startswith("A knee hurts. It is red. What next?\n\nChoose one:\n- Rest")
    assert reasons == {"answer_not_among_letters": 1}


def test_mmlu_names_its_rows_alike_in_both_forms(tmp_path: Path, convert) -> None:
    rows = [mmlu(1, 0), mmlu(2, 3)]
    with (tmp_path / "anatomy_test.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in rows)
    write(tmp_path / "saved.parquet", rows)
    uses = [SourceUse(source="mmlu_medical", split="test", path=str(tmp_path / name)) for name in ("anatomy_test.csv", "saved.parquet")]
    first, second = (convert(use)[0] for use in uses)
    assert first == second
    assert [record.id for record in first] == ["anatomy/test/1", "anatomy/test/2"]
    assert convert(SourceUse(source="mmlu_medical", split="test", path=str(tmp_path)))[0] == first
    packed = tmp_path / "packed" / "anatomy_test.csv.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress((tmp_path / "anatomy_test.csv").read_bytes()))
    for path in (packed, packed.parent):
        assert convert(SourceUse(source="mmlu_medical", split="test", path=str(path)))[0] == first
    with pytest.raises(UserError, match=r"expected a file such as anatomy_val.csv"):
        convert(SourceUse(source="mmlu_medical", split="validation", path=str(tmp_path / "anatomy_test.csv")))


def test_pubhealth_reads_the_first_release(tmp_path: Path, convert) -> None:
    rows = [{"": number, **pubhealth(number, 0), "label": label} for number, label in ((1, "mixture"), (2, "snopes"))]
    write(tmp_path / "PUBHEALTH" / "dev.tsv", rows)
    records, reasons = convert(SourceUse(source="pubhealth", split="validation", path=str(tmp_path)))
    assert [choice(record) for record in records] == ["The claim mixes true and false."]
    assert reasons == {"no_label": 1}


def test_pubhealth_knows_the_order_of_labels_of_each_hub_set(tmp_path: Path, convert) -> None:
    """The same number is another verdict in the two sets; a file alone tells neither, and no label is guessed."""
    rows = [pubhealth(number, number) for number in range(4)]
    write(tmp_path / "one" / "pubhealth_source" / "train" / "0000.parquet", rows)
    write(tmp_path / "one" / "pubhealth_bigbio_pairs" / "train" / "0000.parquet", [{"id": 1, "text_1": "other columns"}])
    write(tmp_path / "two" / "data" / "train-00000-of-00001.parquet", rows)
    wanted = {
        "one": ["is true.", "is false.", "is unproven.", "mixes true and false."],
        "two": ["is false.", "mixes true and false.", "is true.", "is unproven."],
    }
    for name, verdicts in wanted.items():
        records, reasons = convert(SourceUse(source="pubhealth", split="train", path=str(tmp_path / name)))
        assert [choice(record) for record in records] == [f"The claim {verdict}" for verdict in verdicts] and not reasons
    alone = tmp_path / "one" / "pubhealth_source" / "train" / "0000.parquet"
    _, reasons = convert(SourceUse(source="pubhealth", split="train", path=str(alone)))
    assert reasons == {"label_of_unknown_order": 4}


def test_stackexchange_takes_scores_written_as_text(tmp_path: Path, convert) -> None:
    row = stackexchange(1, 0, 3, 1)
    for answer in row["answers"]:
        answer["pm_score"] = str(answer["pm_score"])
    write(tmp_path / "data" / "health.stackexchange.com" / "train-00000-of-00001.parquet", [row])
    (record,), _ = convert(SourceUse(source="stackexchange", path=str(tmp_path)))
    assert said(record)[-1].startswith("Answer 3")


def test_stackexchange_names_html_that_cannot_be_read(tmp_path: Path, convert) -> None:
    rows = [stackexchange(1, 3), {**stackexchange(2, 3), "question": "<p>What is <![foo[bar]]>?</p>"}]
    write(tmp_path / "data" / "health.stackexchange.com" / "train-00000-of-00001.parquet", rows)
    records, reasons = convert(SourceUse(source="stackexchange", path=str(tmp_path)))
    assert (len(records), reasons) == (1, {"not_html": 1})


def test_aci_bench_reads_the_subsets_of_the_hub(tmp_path: Path, convert) -> None:
    for number, subset in enumerate(("virtassist", "virtscribe", "aci")):
        write(tmp_path / subset / "train-00000-of-00001.parquet", [visit(number, f"Note {number}.")])
    records, _ = convert(SourceUse(source="aci_bench", split="train", path=str(tmp_path)))
    assert [said(record)[-1] for record in records] == ["Note 0.", "Note 1.", "Note 2."]


@pytest.mark.parametrize("name", [name for name in sources.names() if name not in ("file", "clinic_facts", "usmle")])
def test_without_a_copy_the_hub_is_named(name: str) -> None:
    source = sources.load(name)
    use = SourceUse(source=name, split=next(iter(source.splits)))
    with pytest.raises(UserError, match=r"`path:`") as caught:
        list(source.rows(use))
    assert (source.repository or "https://github.com/") in str(caught.value) or "Open-Orca" in str(caught.value)


def test_a_folder_without_the_files_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    use = SourceUse(source="stackexchange", path=str(tmp_path))
    with pytest.raises(UserError, match=r"no file fits data/academia.*layout of the repository"):
        list(sources.load("stackexchange").rows(use))
    with pytest.raises(UserError, match="no such file or folder"):
        list(sources.load("stackexchange").rows(use.model_copy(update={"path": str(tmp_path / "absent")})))


REAL = [
    ("medmcqa", "validation", "medmcqa/medmcqa_dev_part.jsonl", 2894, {"repeated_choices": 16}),
    ("medqa", "validation", "medqa_usmle/medqa_us_dev_facts.jsonl", 1272, {}),
    ("medquad", "train", "medquad/medquad_answered.jsonl", 9840, {}),
    ("mmlu_medical", "test", "mmlu_medical", 845, {}),
    ("mts_dialog", "train", "mts_dialog/mts_dialog_train.jsonl", 1201, {}),
    ("mts_dialog", "validation", "mts_dialog/mts_dialog_validation.jsonl", 100, {}),
    ("aci_bench", "train", "aci_bench/aci_bench_train.jsonl", 67, {}),
    ("aci_bench", "valid", "aci_bench/aci_bench_valid.jsonl", 20, {}),
]


@pytest.mark.parametrize(("name", "split", "path", "count", "dropped"), REAL, ids=[f"{row[0]}-{row[1]}" for row in REAL])
def test_the_real_rows(name: str, split: str, path: str, count: int, dropped: dict, shared_data: Path, convert) -> None:
    records, reasons = convert(SourceUse(source=name, split=split, path=str(shared_data / path)))
    assert (len(records), reasons) == (count, dropped)
    assert len({record.id for record in records}) == count
