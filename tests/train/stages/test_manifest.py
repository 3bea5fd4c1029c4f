"""The manifest and the data card of a recipe whose rows were really read, filtered, mixed and tokenised.

Covers: train/display/rows, train/display/training_sets, train/reports/data, train/reports/training_sets.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rounds.data_prep.records import Conversation, Message, Pair, Prompt, read_records
from rounds.train.cli import app
from rounds.train.config import recipe
from rounds.train.config.cluster import Machine
from rounds.train.display import first_rows, training_sets
from rounds.train.display import rows as row_display
from rounds.train.engine import store, worker
from rounds.train.engine.graph import parents_first
from rounds.train.plan.pipeline import Plan, build_plan

pytestmark = pytest.mark.xdist_group("manifest")
pytest.importorskip("presidio_analyzer")
BASE = {"kind": "tiny", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 400, "max_position_embeddings": 256}  # fmt: skip
SECRET = "Jane Roe, MRN 4471882"
VIGNETTE = (
    "A 54-year-old gardener comes to the clinic with six weeks of burning pain in both soles that wakes him at night "
    "and eases when he walks on cold tiles"
)
ASKED = f"{VIGNETTE}. Which nerve fibres are most likely damaged?"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def made(folder: Path) -> Plan:
    """Plan a recipe with a file of notes, an exam held out, pairs of two sets that share a prompt id, and generated facts."""
    note = {"question": f"Patient: {SECRET}. What is next?", "answer": "Call the surgeon today."}
    leak = {"question": f"{VIGNETTE}, he says. What would you test?", "answer": "The small fibres, by a skin biopsy."}
    notes = [note, leak, *({"question": f"What is {n} times two?", "answer": f"It is {2 * n}."} for n in range(40))]
    exam = {"id": 1, "question": ASKED, "options": {"A": "Small fibres", "B": "Large fibres"}, "answer_idx": "A"}

    def pair(name: str, prompt: str, better: str = "Yes, and here is why.", worse: str = "No.") -> dict[str, Any]:
        return {"prompt": prompt, "prompt_id": name, "score_chosen": 8, "score_rejected": 2,
                "chosen": [{"role": "user", "content": prompt}, {"role": "assistant", "content": better}],
                "rejected": [{"role": "user", "content": prompt}, {"role": "assistant", "content": worse}]}  # fmt: skip

    seen = "0123456789abcdef0123"
    pairs = [pair(f"p{n:020d}", f"Is {n} a number?") for n in range(20)]
    pairs += [pair(seen, "The same prompt in other words"), pair("x" * 20, "Tell me a case.", f"{ASKED} The small ones."),
              pair("y" * 20, "Tell me another.", worse=ASKED)]  # fmt: skip
    data = {
        "name": "carded",
        "base": BASE,
        "seed": 3,
        "sources": {
            "notes": {"source": "file", "path": write(folder / "notes.jsonl", notes), "format": "question_answer",
                      "licence": "CC BY-NC 4.0"},
            "facts": {"source": "clinic_facts", "max_rows": 60},
            "exam": {"source": "medqa", "split": "test", "path": write(folder / "exam.jsonl", [exam])},
            "pairs": {"source": "ultrafeedback", "split": "train_prefs", "path": write(folder / "pairs.jsonl", pairs)},
            "kept": {"source": "snorkel", "split": "test_iteration_1",
                     "path": write(folder / "kept.jsonl", [pair(seen, "What was it that you asked me a while ago?")])},
        },
        "sft": {"data": [{"name": "notes", "epochs": 1.5}, {"name": "facts", "max_rows": 30}], "max_length": 128,
                "global_batch_size": 2, "learning_rate": 1e-3},
        "rounds": [{"name": "first", "data": ["pairs"], "max_length": 128, "global_batch_size": 2, "learning_rate": 1e-4}],
        "wandb": "off",
    }  # fmt: skip
    file = folder / "carded.yaml"
    file.write_text(yaml.safe_dump(data))
    return build_plan(recipe.load(file), folder / "store", folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """Run every stage that the manifest reads, and the manifest."""
    folder = tmp_path_factory.mktemp("carded")
    plan = made(folder)
    for stage in parents_first([plan.stage("manifest")]):
        worker.run(worker.Job(folder=store.prepare(folder / "store", stage), machine=Machine(device="cpu", threads=1)))
    return plan, folder / "store"


@pytest.fixture(scope="module")
def manifest(built: tuple[Plan, Path]) -> dict[str, Any]:
    plan, root = built
    return json.loads((store.folder(root, plan.stage("manifest")) / "manifest.json").read_text())


def test_every_row_of_a_source_is_accounted_for(manifest: dict[str, Any]):
    for each in manifest["sources"].values():
        phi = (each["phi"] or {}).get("dropped", 0)
        assert each["rows"] == each["records"] + each["not_chosen"] + sum(each["dropped"].values())
        assert phi <= sum(each["dropped"].values())
    for made_set in manifest["sets"].values():
        assert made_set["rows"] == sum(each["out"] for each in made_set["sources"].values())
        assert made_set["tokens"] == sum(each["lengths"]["tokens"] for each in made_set["sources"].values())
        for each in made_set["sources"].values():
            gone = sum(sum(reasons.values()) for reasons in each["dropped"].values())
            assert each["rows"] == gone + each["not_in_mix"] + each["out"] - each["repeats"]
            assert each["lengths"]["rows"] + sum(each["lengths"]["dropped"].values()) == each["out"]
            assert sum(each["lengths"]["histogram"].values()) == each["lengths"]["rows"] == each["trained_rows"]
        assert sum(each["trained_rows"] for each in made_set["sources"].values()) == made_set["trained_rows"]
        assert sum(each["token_share"] for each in made_set["sources"].values()) == pytest.approx(1, abs=1e-3)


def test_sources_are_told_with_licence_and_what_they_are_for(manifest: dict[str, Any]):
    notes, exam, pairs = (manifest["sources"][name] for name in ("notes", "exam", "pairs"))
    assert (notes["licence"], notes["conditions"]) == ("CC BY-NC 4.0", "credit, not commercial")
    assert (notes["trained_on_in"], notes["held_out_from"]) == (["sft"], [])
    assert (exam["trained_on_in"], exam["held_out_from"]) == ([], ["sft", "first"])
    assert len(pairs["digest"]) == 64 and pairs["repository"] == "HuggingFaceH4/ultrafeedback_binarized"
    assert manifest["sets"]["sft"]["sources"]["notes"]["repeats"] > 15
    assert manifest["sets"]["sft"]["sources"]["facts"]["out"] == 30


def test_what_is_held_out_is_taken_out_of_prompts_and_of_both_answers_by_text_and_by_id(manifest: dict[str, Any]):
    assert manifest["sets"]["sft"]["overlaps"] == {"exam": 1}
    assert manifest["sets"]["first"]["overlaps"] == {"exam": 2, "kept": 1}
    assert manifest["overlaps"] == {"exam": 3, "kept": 1}
    reasons = manifest["sets"]["first"]["sources"]["pairs"]["dropped"]["decontaminate"]
    assert reasons == {"overlaps_exam": 2, "heldout_prompt_kept": 1}


def test_a_persons_own_rows_are_masked_by_default(built: tuple[Plan, Path], manifest: dict[str, Any]):
    plan, root = built
    phi = manifest["sources"]["notes"]["phi"]
    assert phi["rows"] == 1 and set(phi["kinds"]) == {"name", "record_number"}
    assert manifest["sources"]["facts"]["phi"] is None
    for name in ("source.notes", "data.sft"):
        texts = [
            turn.content
            for record in read_records(store.folder(root, plan.stage(name)) / "records.parquet")
            if isinstance(record, Conversation)
            for turn in record.messages
        ]
        assert not any("Roe" in text or "4471882" in text for text in texts)
        assert any("[NAME]" in text for text in texts)


def test_the_warnings_say_what_to_know_before_use(manifest: dict[str, Any]):
    said = "\n".join(manifest["warnings"])
    assert "notes: CC BY-NC 4.0 does not allow commercial use" in said
    assert "not compared with medmcqa, pubmedqa, mmlu_medical, headqa, ultrafeedback: their rows were not at hand" in said
    assert "exam" not in said, "conditions of what is only held out are no matter"


def test_the_card_tells_the_same_and_no_text(built: tuple[Plan, Path], manifest: dict[str, Any]):
    plan, root = built
    folder = store.folder(root, plan.stage("manifest"))
    card = (folder / "DATA_CARD.md").read_text()
    assert "**not for\nclinical use**" in card
    assert all(line in card for line in manifest["warnings"])
    assert "| notes | file, train | a file of your own | sha256 `" in card
    assert "| pairs | ultrafeedback, train_prefs | local copy of HuggingFaceH4/ultrafeedback_binarized | sha256 `" in card
    assert "| facts | clinic_facts, train | - | - |" in card and "credit, not commercial" in card
    assert "masked in 1 rows: name 1, record_number 1" in card
    assert "1 rows were taken out for exam" in card
    assert "    <=64" in card and "#" * 30 in card
    for text in (SECRET, "Roe", VIGNETTE, "gardener", "times two"):
        assert not any(text in path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md"))
    counts = store.counts(folder)
    assert counts["overlaps"] == manifest["overlaps"] and counts["warnings"] == len(manifest["warnings"])


def test_adding_a_source_makes_no_other_source_again(built: tuple[Plan, Path], tmp_path: Path):
    plan, root = built
    before = {stage.name: stage.key for stage in plan.stages if stage.kind.name == "source"}
    data = plan.recipe.model_dump(mode="json")
    data["sources"]["more"] = {"source": "clinic_facts", "split": "train_questions"}
    data["sft"]["data"].append({"name": "more"})
    after = build_plan(recipe.Recipe.model_validate(data), root, tmp_path)
    keys = {stage.name: stage.key for stage in after.stages if stage.kind.name == "source"}
    assert keys == {**before, "source.more": keys["source.more"]}


def test_the_rows_of_a_set_open_in_datasets_and_in_pandas(built: tuple[Plan, Path], tmp_path: Path):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    plan, root = built
    path = store.folder(root, plan.stage("data.sft")) / "records.parquet"
    table = pandas.read_parquet(path)
    opened = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path))
    assert list(table["id"]) == opened["id"] and table["id"].is_unique
    assert set(table["source"]) == {"notes", "facts"}


# The commands that show it.


def rounds(root: Path, *arguments: str, expect: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *arguments, str(root.parent / "carded.yaml"), "--store", str(root)])
    assert result.exit_code == expect, result.output
    return result.output


def test_stats_show_the_sets_and_draw_their_lengths(built: tuple[Plan, Path], tmp_path: Path):
    _, root = built
    text = rounds(root, "stats", "--save", str(tmp_path / "lengths.svg"))
    assert "67.4%" in text and "█" * 50 in text and "pairs (prompt and the longer answer) by tokens" in text
    drawn = (tmp_path / "lengths.svg").read_text()
    assert drawn.lstrip().startswith("<?xml") and (tmp_path / "lengths.svg").stat().st_size > 5000
    assert "a picture is saved as .png" in rounds(root, "stats", "--save", str(tmp_path / "lengths.doc"), expect=1)


def test_rounds_that_share_rows_and_not_max_length_are_each_told_with_their_own_tokens(tmp_path: Path):
    one = {"name": "one", "data": ["pairs"], "max_length": 250, "global_batch_size": 2, "learning_rate": 1e-4}
    data = {"name": "shared", "base": BASE, "wandb": "off", "rounds": [one, {**one, "name": "two", "max_length": 97}],
            "sources": {"facts": {"source": "clinic_facts", "max_rows": 40},
                        "pairs": {"source": "clinic_facts", "split": "train_pairs_1", "max_rows": 30}},
            "sft": {"data": ["facts"], "max_length": 250, "global_batch_size": 2, "learning_rate": 1e-3}}  # fmt: skip
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(data))
    plan, root = build_plan(recipe.load(tmp_path / "shared.yaml"), tmp_path / "store", tmp_path), tmp_path / "store"
    for stage in parents_first([plan.stage("manifest")]):
        worker.run(worker.Job(folder=store.prepare(root, stage), machine=Machine(device="cpu", threads=1)))
    told = json.loads((store.folder(root, plan.stage("manifest")) / "manifest.json").read_text())["sets"]
    counts = {name: store.counts(store.folder(root, plan.stage(f"tokenize.{name}"))) for name in ("one", "two")}
    assert counts["one"]["pairs"] > counts["two"]["pairs"]
    assert {name: told[name]["trained_rows"] for name in counts} == {name: each["pairs"] for name, each in counts.items()}
    assert training_sets.sets(plan, root) == told


def test_stats_tell_what_is_expected_before_anything_is_done(tmp_path: Path):
    folder = tmp_path / "none"
    (tmp_path / "quick.yaml").write_text(f"extends: {Path(__file__).parents[1] / 'mini.yaml'}\n")
    result = CliRunner().invoke(app, ["data", "stats", str(tmp_path / "quick.yaml"), "--store", str(folder)])
    assert result.exit_code == 0 and "facts" in result.output and "≤ 240" in result.output
    assert "not made yet" in result.output and "sft, first, second" in result.output


def test_preview_shows_rows_as_tokens_with_what_is_learnt_marked(built: tuple[Plan, Path]):
    _, root = built
    text = rounds(root, "preview", "--source", "facts", "-n", "2")
    assert "2 rows of data.sft: after filters and mix" in text
    assert text.count("<|start_header_id|>assistant<|end_header_id|>\n\n«") == 2 and text.count("<|eot_id|>»") == 2
    pairs = rounds(root, "preview", "--source", "pairs", "-n", "1")
    assert "chosen (" in pairs and "rejected (" in pairs and "«Yes, and here is why.<|eot_id|>»" in pairs
    held = rounds(root, "preview", "--source", "exam")
    assert "of source.exam: before filters and mix" in held and "«Small fibres<|eot_id|>»" in held
    assert "no stage of this recipe reads a source 'fact': did you mean 'facts'" in rounds(root, "preview", "--source", "fact", expect=1)


def test_preview_marks_just_the_tokens_that_are_learnt(built: tuple[Plan, Path]):
    from rounds.train.tokens import chat

    plan, root = built
    using = row_display.tokenizer(plan, root)
    assert not isinstance(using, str)
    for record in first_rows.rows(plan, root, "facts", 5).records:
        assert isinstance(record, Conversation)
        encoded = chat.encode_conversations(using, [record.messages])[0]
        assert not isinstance(encoded, str)
        text = row_display.shown(record, using, marked=False)
        green = "".join(text.plain[span.start : span.end] for span in text.spans if span.style == row_display.LEARNT)
        learnt = [token for token, learns in zip(encoded.input_ids, encoded.answer_mask, strict=True) if learns]
        assert green == using.decode(learnt)
        assert text.plain.partition("\n")[2] == using.decode(encoded.input_ids)


def test_preview_tells_of_rows_that_are_too_long_to_train_on_and_cuts_pairs_as_training_does(built: tuple[Plan, Path]):
    plan, root = built
    using = row_display.tokenizer(plan, root)
    facts, pairs = (first_rows.rows(plan, root, name, 1) for name in ("facts", "pairs"))
    assert (facts.max_length, pairs.max_length) == (128, 128) and first_rows.rows(plan, root, "exam", 1).max_length is None
    assert "longer_than_max_length" in row_display.shown(facts.records[0], using, True, 20).plain
    (pair,) = pairs.records
    assert isinstance(pair, Pair)
    long = replace(pair, chosen="Yes, and here is why, said once more. " * 40)
    whole, cut = (row_display.shown(long, using, True, limit).plain for limit in (None, 128))
    assert "<|eot_id|>»" in whole.partition("rejected")[0] and "<|eot_id|>»" not in cut.partition("rejected")[0]


def test_preview_shows_a_prompt_as_it_is_asked_with_the_answer_that_is_known():
    asked = Prompt("p", "sums", (Message("system", "Be brief."), Message("user", "2 and 2?")), "4")
    assert row_display.shown(asked, "no tokenizer", marked=True).plain == "p\n[system] Be brief.\n[user] 2 and 2?\n(right: 4)\n"


def test_preview_without_any_finished_stage_reads_the_source_and_masks_it(built: tuple[Plan, Path], tmp_path: Path):
    plan, _ = built
    found = first_rows.rows(plan, tmp_path, "notes", 1)
    text = row_display.shown(found.records[0], row_display.tokenizer(plan, tmp_path), marked=True).plain
    assert "source.notes is not finished" in found.found
    assert "[user] Patient: [NAME], MRN [RECORD_NUMBER]" in text and "«[assistant] Call the surgeon today.\n»" in text
