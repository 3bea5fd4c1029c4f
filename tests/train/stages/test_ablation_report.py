"""The page and the table of an ablation, from folders as the stages before would have left them.

Covers: train/reports/figures.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rounds.data_prep import records
from rounds.data_prep.records import Message, Question
from rounds.train.config.cluster import Machine
from rounds.train.engine import store
from rounds.train.reports import figures
from tests import staged

ITEMS = 80
Maker = Callable[..., tuple[dict, dict[str, Path]]]


def evaluation(folder: Path, acc: list[float], loss: list[float]) -> None:
    """Leave a finished evaluation of one task of two phrasings a question, and of held-out answers."""
    folder.mkdir()
    values = {
        "task/acc": {f"task/q{n // 2}/{n % 2}": value for n, value in enumerate(acc)},
        "conversations/loss": {f"c{n}": value for n, value in enumerate(loss)},
        "answers/tokens": {str(n): 5.0 for n in range(4)},
    }
    rows = [
        (metric, item, float(value), item.rpartition("/")[0] or item) for metric, items in values.items() for item, value in items.items()
    ]
    pq.write_table(
        pa.table(dict(zip(("metric", "item", "value", "question"), map(list, zip(*rows, strict=True)), strict=True))),
        folder / "items.parquet",
    )
    scores = {metric: {"value": float(np.mean(list(items.values()))), "stderr": 0.1, "n": len(items),
                       "higher_is_better": None if metric == "answers/tokens" else metric == "task/acc"}
              for metric, items in values.items()}  # fmt: skip
    store.write_json(folder / "scores.json", scores)
    tasks = [{"name": "task", "task": "choice", "source": "asked", "num_fewshot": 0, "limit": None, "yaml": ""}]
    spec = staged.described("evaluate.x", {"tasks": tasks}, {"task.asked": {"stage": "source-1"}})
    store.write_json(folder / "stage.json", spec)
    store.write_json(folder / "done.json", {"status": "done", "seconds": 10.0, "digests": {}, "counts": {}})


@pytest.fixture
def made(tmp_path: Path) -> Maker:
    """Lay out an ablation with a variant that is worse, one that is the same in all but name, and one that is it."""

    def make(seeds: tuple[int, ...] = (0,), **more: object) -> tuple[dict, dict[str, Path]]:
        (tmp_path / "source-1").mkdir()
        questions = [
            Question(f"q{n // 2}/{n % 2}", "made", (Message("user", f"Is it {n // 2}?"),), ("yes", "no"), 0, "g") for n in range(ITEMS)
        ]
        records.write_records(tmp_path / "source-1" / "records.parquet", questions, "question")
        store.write_json(tmp_path / "source-1" / "stage.json", staged.described("source.a", {}, {}))
        store.write_json(tmp_path / "source-1" / "done.json", {"status": "done", "seconds": 30.0, "digests": {}})
        random = np.random.default_rng(0)
        variants: dict[str, dict] = {}
        for name, drop in (("all", 0.0), ("worse", 0.4), ("equal", 0.0)):
            cells = []
            for seed in seeds:
                acc = [float(n % 10 >= 10 * drop) for n in range(ITEMS)]
                evaluation(tmp_path / f"evaluate-{name}{seed}", acc, list(random.normal(1, 0.1, ITEMS)))
                cells.append({"seed": seed, "scores": f"evaluate-{name}{seed}", "stages": ["source-1", f"evaluate-{name}{seed}"]})
            variants[name] = {"about": f"about <{name}>", "changes": ["sft: left out"], "cells": cells}
        variants["itself"] = variants["all"]
        params = {"name": "made", "description": "d", "base": "recipe", "baseline": "all", "variants": variants,
                  "missing": {"lost": "no <space>"}, **more}  # fmt: skip
        return json.loads(json.dumps(params)), {folder.name: folder for folder in tmp_path.glob("*-*")}

    return make


def run(made: tuple[dict, dict[str, Path]], out: Path) -> tuple[dict, str, dict[tuple[str, str], dict[str, str]]]:
    out.mkdir()
    counts = staged.run("ablation_report", *made, out, Machine())
    with (out / "ablation.csv").open() as file:
        lines = {(line["variant"], line["metric"]): line for line in csv.DictReader(file)}
    return counts, (out / "ablation.html").read_text(), lines


def test_the_table_has_every_difference_and_the_page_says_what_holds(made: Maker, tmp_path: Path):
    counts, page, lines = run(made(), tmp_path / "out")
    worse = lines["worse", "task/acc"]
    assert (worse["verdict"], worse["items"], worse["clusters"]) == ("worse", "80", "40")
    assert float(worse["difference"]) == pytest.approx(-0.4)
    assert float(worse["low"]) < -0.4 < float(worse["high"]) < 0
    assert lines["equal", "task/acc"]["verdict"] == "within noise"
    assert lines["itself", "task/acc"]["verdict"] == "same policy" and not lines["itself", "task/acc"]["p_holm"]
    assert lines["worse", "answers/tokens"]["verdict"] == ""
    assert "1 of 4 differences to all hold after correction, 1 for the worse" in " ".join(page.split())
    assert "80 items of 40 questions" in page and "Each variant ran once" in page
    assert "about &lt;worse&gt;" in page and "no &lt;space&gt;" in page and "<space>" not in page
    assert counts["verdicts"] == {"same policy": 2, "within noise": 3, "worse": 1}


def test_what_variants_share_is_counted_once(made: Maker, tmp_path: Path):
    counts, page, lines = run(made(), tmp_path / "out")
    assert (counts["seconds"], counts["seconds_alone"]) == (
        60.0,
        160.0,
    )  # a source of 30 s and three evaluations of 10 s
    assert (lines["worse", "task/acc"]["seconds_own"], lines["worse", "task/acc"]["seconds_alone"]) == ("10.0", "40.0")
    assert "38 % of running each variant alone" in page


def test_several_seeds_are_one_difference_with_their_spread_stated(made: Maker, tmp_path: Path):
    _, page, lines = run(made((0, 1, 2)), tmp_path / "out")
    assert lines["worse", "conversations/loss"]["seeds"] == "3"
    assert float(lines["worse", "conversations/loss"]["seed_stderr"]) > 0
    assert "contain the seeds' own error" in page and "Each variant ran once" not in page


def test_nothing_that_can_be_tested_is_said_so(made: Maker, tmp_path: Path):
    params, inputs = made()
    params["variants"] = {name: params["variants"][name] for name in ("all", "itself")}
    _, page, _ = run((params, inputs), tmp_path / "out")
    assert "Nothing could be tested" in page and "no difference is possible" in page


def test_the_same_stages_give_the_same_page_to_the_byte(made: Maker, tmp_path: Path):
    given = made()
    assert run(given, tmp_path / "one")[1] == run(given, tmp_path / "two")[1]


def test_the_page_is_self_contained(made: Maker, tmp_path: Path):
    _, page, _ = run(made(), tmp_path / "out")
    assert "<script" not in page and "src=" not in page and "@import" not in page and "default-src 'none'" in page


def interval(value: float) -> figures.Interval:
    return figures.Interval("x", value, value - abs(value) / 10, value + abs(value) / 10, 0)


def test_an_axis_ends_before_what_would_press_the_rest_together():
    assert figures.forest_limit([interval(v) for v in (0.1, -0.2, 0.3)]) is None
    assert figures.forest_limit([interval(v) for v in (0.0, 0.0, -0.7)]) is None
    assert figures.forest_limit([interval(v) for v in (0.001, -0.002, 7.0)]) == pytest.approx(1.6 * 0.0022)
    drawn = figures.forest("loss", [interval(v) for v in (0.001, -0.002, 7.0)], higher_is_better=False)
    assert "+7 →" in drawn and "better ← difference → worse" in drawn
