"""Tasks that lm-eval ships, by name: their own prompts, choices and metrics, on rows where `datasets` finds them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow.parquet as pq
import pytest

from rounds.train.config.cluster import Machine
from rounds.train.engine import store
from tests import staged

ENDINGS = ["Aspirin", "Heparin", "Metformin", "Naloxone"]
Put = Callable[[str, str, dict[str, list[dict]]], None]
Ask = Callable[[str, str], tuple[Path, dict]]


@pytest.fixture
def put_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Write rows where `datasets` prefers them over the hub's repository of that name: a folder in the current one.

    With a cache of its own: `datasets` knows such a folder by its name alone, and would give the rows of the test before.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")

    def write(repository: str, config: str, splits: dict[str, list[dict]]) -> None:
        folder = tmp_path / repository
        (folder / config).mkdir(parents=True)
        for split, rows in splits.items():
            (folder / config / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        configs = [
            {"config_name": name, "data_files": [{"split": file.stem, "path": f"{name}/{file.name}"} for file in files]}
            for name, files in ((each.name, each.glob("*.jsonl")) for each in folder.iterdir() if each.is_dir())
        ]
        (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")

    return write


@pytest.fixture
def ask(shelf: Path, tmp_path: Path) -> Ask:
    """Ask the tiny base a task by name, with room for the 256 tokens that gsm8k may answer with."""
    config = shelf / "base" / "model" / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 256', '"max_position_embeddings": 512'))

    def run(task: str, name: str) -> tuple[Path, dict]:
        asked = {"task": task, "name": name, "source": None, "num_fewshot": 0, "limit": None, "yaml": None}
        params = {"tasks": [asked], "max_length": 512}
        out = tmp_path / "out"
        out.mkdir()
        return out, staged.run("evaluate", params, {"policy": shelf / "base"}, out, Machine(device="cpu", threads=1))

    return run


def read(out: Path, name: str) -> Any:
    return store.read_json(out / name)


def items(out: Path) -> set[tuple[str, str]]:
    return {(row["metric"], row["item"]) for row in pq.read_table(out / "items.parquet").to_pylist()}


def test_a_bundled_task_runs_by_name(put_dataset: Put, ask: Ask):
    made = {
        split: [
            {"id": f"{split}-{place}", "sent1": f"Which one reverses number {place}?", "sent2": "", "label": place,
             **{f"ending{number}": text for number, text in enumerate(ENDINGS)}}
            for place in range(3)
        ]
        for split in ("train", "validation", "test")
    }  # fmt: skip
    put_dataset("GBaker/MedQA-USMLE-4-options-hf", "default", made)
    out, _ = ask("medqa_4options", "medqa")
    scores = read(out, "scores.json")
    assert scores["medqa/acc"]["n"] == 3 and scores["medqa/acc_norm"]["n"] == 3
    assert 0 <= scores["medqa/acc"]["value"] <= 1
    own = read(out, "lm_eval.json")["medqa"]["results"]["medqa_4options"]
    assert own["acc,none"] == pytest.approx(scores["medqa/acc"]["value"])
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {sample["id"] for sample in samples} == {"test-0", "test-1", "test-2"}


def test_what_lm_eval_would_cut_is_left_out_of_all_metrics(put_dataset: Put, ask: Ask):
    """The context alone, a choice that is longer than all that the model reads, and a prompt that leaves no room for its answer."""
    rows = [{"question": "How many? " * (40 * (place == 1)) + f"{place}?", "answer": f"#### {place}"} for place in range(3)]
    put_dataset("openai/gsm8k", "main", {"train": rows, "test": rows})
    out, counts = ask("gsm8k", "gsm8k")
    assert counts["dropped"] == {"gsm8k": {"longer_than_max_length": 1}}
    assert {item for _, item in items(out)} == {"gsm8k/0", "gsm8k/2"}
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["doc_id"] for line in lines if "dropped" in line] == [1] and len(lines) == 5
    assert read(out, "lm_eval.json")["gsm8k"]["n-samples"]["gsm8k"]["effective"] == 2


def test_a_group_is_asked_what_fits_of_each_subtask(put_dataset: Put, ask: Ask):
    for config, number in (("ARC-Easy", 4), ("ARC-Challenge", 2)):
        rows = [
            {"id": f"row-{place}", "question": f"Which one is number {place}?", "answerKey": "A",
             "choices": {"text": [ENDINGS[0] * (300 if place == 1 else 1), *ENDINGS[1:]], "label": list("ABCD")}}
            for place in range(number)
        ]  # fmt: skip
        put_dataset("allenai/ai2_arc", config, dict.fromkeys(("train", "validation", "test"), rows))
    out, counts = ask("ai2_arc", "arc")
    assert counts["dropped"] == {"arc": {"longer_than_max_length": 2}}
    assert {item for metric, item in items(out) if metric == "arc/acc"} == {
        "arc_easy/row-0",
        "arc_easy/row-2",
        "arc_easy/row-3",
        "arc_challenge/row-0",
    }


def test_filters_of_a_task_are_metrics_of_their_own(put_dataset: Put, ask: Ask):
    rows = [{"question": f"What is {place} + 1?", "answer": f"One more.\n#### {place + 1}"} for place in range(4)]
    put_dataset("openai/gsm8k", "main", {"train": rows, "test": rows})
    out, counts = ask("gsm8k", "gsm8k")
    wanted = {"gsm8k/exact_match,strict-match", "gsm8k/exact_match,flexible-extract"}
    assert items(out) == {(metric, f"gsm8k/{place}") for metric in wanted for place in range(4)}
    assert set(store.scores(out)) == wanted == set(counts["scores"])
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [sample["filter"] for sample in samples] == ["strict-match"] * 4 + ["flexible-extract"] * 4


def test_a_groups_score_is_the_mean_over_the_items_of_all_its_subtasks(put_dataset: Put, ask: Ask):
    for config, number in (("ARC-Easy", 5), ("ARC-Challenge", 2)):
        rows = [
            {"id": f"row-{place}", "question": f"Which one is number {place}?", "answerKey": "ABCD"[place % 4],
             "choices": {"text": ENDINGS, "label": list("ABCD")}}
            for place in range(number)
        ]  # fmt: skip
        put_dataset("allenai/ai2_arc", config, dict.fromkeys(("train", "validation", "test"), rows))
    out, _ = ask("ai2_arc", "arc")
    score = read(out, "scores.json")["arc/acc"]
    reported = read(out, "lm_eval.json")["arc"]["results"]
    easy, hard = (reported[name]["acc,none"] for name in ("arc_easy", "arc_challenge"))
    assert easy != hard, "alike: the test could not tell a mean over items from one over subtasks"
    assert score["n"] == 7 and score["value"] == pytest.approx((5 * easy + 2 * hard) / 7)
    assert {item for metric, item in items(out) if metric == "arc/acc"} == {
        *(f"arc_easy/row-{place}" for place in range(5)),
        "arc_challenge/row-0",
        "arc_challenge/row-1",
    }
