"""The two readings of the paper's table as recipes, and the mixes that lie over them."""

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rounds.train.commands import options
from rounds.train.commands.plan import plan as plan_command
from rounds.train.config import recipe
from rounds.train.forecast import row_counts
from rounds.train.plan.pipeline import Plan, build_plan

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
GENERAL = ("slim_orca_t0", "slim_orca_flan", "slim_orca_cot", "ultrachat")
LISTED = {"medmcqa": 180_462, "medical_flashcards": 30_106, "cord19": 17_721, "headqa": 2_657, "sciq": 11_679,
          "pubmed_causal": 2_169, "medquad": 14_553, "mediqa": 1_950, "slim_orca_t0": 109_235, "slim_orca_flan": 109_169,
          "slim_orca_cot": 74_172, "ultrachat": 50_953}  # fmt: skip
"""Rows of Med42-v2's table 5 of which a published set holds as many."""


def rows_of(file: Path, root: Path) -> tuple[Plan, dict[str, int]]:
    plan = build_plan(recipe.load(file), root, RECIPES)
    return plan, row_counts.mixes(plan, root)["data.sft"]


def test_the_listed_mix_takes_the_rows_of_the_table(tmp_path: Path):
    _, rows = rows_of(RECIPES / "med42-v2-8b.yaml", tmp_path)
    assert {name: rows[name] for name in LISTED} == LISTED
    assert rows["medqa"] + rows["medqa_dev"] == 11_290
    assert rows["pubmedqa"] + rows["pubmedqa_dev"] == 499
    assert rows["mmlu_dev"] + rows["mmlu_validation"] == 244
    assert rows["aci_bench"] + rows["aci_bench_valid"] == 87
    assert sum(rows[name] for name in GENERAL) == 343_529


def test_the_reweighted_mix_has_the_printed_parts_and_every_medical_row(tmp_path: Path):
    _, listed = rows_of(RECIPES / "med42-v2-8b.yaml", tmp_path)
    plan, rows = rows_of(RECIPES / "med42-v2-8b-reweighted.yaml", tmp_path)
    total = sum(rows.values())
    printed = dict(zip(GENERAL, (0.0843, 0.0842, 0.0572, 0.0393), strict=True))
    assert {name: round(rows[name] / total, 4) for name in GENERAL} == printed
    assert {name: rows[name] for name in rows if name not in GENERAL} == {name: listed[name] for name in listed if name not in GENERAL}
    first = build_plan(recipe.load(RECIPES / "med42-v2-8b.yaml"), tmp_path, RECIPES)
    shared = {stage.key for stage in plan.stages} & {stage.key for stage in first.stages}
    assert {stage.name for stage in first.stages if stage.kind.name == "source"} == {
        stage.name for stage in first.stages if stage.key in shared and stage.kind.name == "source"
    }, "the two readings fetch each set once"


def test_the_sets_that_are_brought_as_files_lie_over_the_listed_mix(tmp_path: Path):
    (tmp_path / "MTS-Dialog").mkdir()
    (tmp_path / "MTS-Dialog" / "train.tsv").write_text("claim_id\n1\n")
    file = tmp_path / "own.yaml"
    over = [str(RECIPES / "med42-v2-8b.yaml"), str(RECIPES / "mixes" / "med42-v2-files.yaml")]
    paths = {"mts_dialog": "MTS-Dialog", "mts_dialog_dev": "MTS-Dialog"}
    file.write_text(yaml.safe_dump({"extends": over, "sources": {name: {"path": path} for name, path in paths.items()}}))
    plan, rows = rows_of(file, tmp_path / "store")
    assert rows["mts_dialog"] + rows["mts_dialog_dev"] == 2_602
    assert rows["pubhealth"] == 9_804
    assert "source.pubhealth" in {stage.name for stage in plan.stages}


def test_plan_shows_the_rows_and_parts_of_a_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    console = Console(width=1000, record=True, file=(tmp_path / "out.txt").open("w"))
    monkeypatch.setattr(options, "console", console)
    plan_command(RECIPES / "med42-v2-8b-reweighted.yaml", root=tmp_path / "store")
    text = console.export_text()
    assert "data.sft: medmcqa 27.2%" in text and "slim_orca_t0 8.4%" in text and "ultrachat 3.9%" in text
    assert "up to 663,459 rows" in text
    assert "decontaminate: data.sft, data.first, data.second, data.third against" in text
    assert "toxigen_test" in text.partition("against ")[2].partition("\n")[0] and "not compared with" not in text
