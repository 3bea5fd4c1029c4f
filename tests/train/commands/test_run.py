"""`rounds run --until` and `rounds data build`: a part of a run is made, nothing else, and a run goes on from there."""

from pathlib import Path

from rounds.train.engine import runs
from tests.train import command_line

MINI = Path(__file__).parents[1] / "mini.yaml"


def rounds(*arguments: str | Path, store: Path, expect: int = 0) -> str:
    return command_line.here(*arguments, "--store", store, expect=expect, environment={"COLUMNS": "200"})


def test_a_run_until_a_stage_makes_it_and_what_it_needs(tmp_path: Path) -> None:
    said = rounds("run", MINI, "--until", "source.pairs_1", store=tmp_path)
    assert "1 stages run" in said and "30 of 31 stages to do" in said and "go on: rounds run" in said
    made = [name for name, stage in runs.last_run(tmp_path, "mini").items() if (tmp_path / stage["folder"] / "done.json").exists()]
    assert made == ["source.pairs_1"]
    assert "nothing was left to do" in rounds("run", MINI, "--until", "source.pairs_1", store=tmp_path)


def test_a_stage_that_no_recipe_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'data.sft'" in rounds("run", MINI, "--until", "data.stf", store=tmp_path, expect=1)


def test_data_build_makes_rows_and_tokens_of_every_set_and_trains_nothing(tmp_path: Path) -> None:
    listed = rounds("data", "build", MINI, "--dry-run", store=tmp_path)
    assert "mini: 13 stages" in listed
    assert all(name in listed for name in ("data.sft", "pack", "data.first", "tokenize.first", "tokenize.second"))
    assert not any(name in listed for name in ("dpo.", "reference.", "evaluate.", "export"))


def test_data_build_of_a_finished_run_shows_all_numbers(undisturbed: Path) -> None:
    said = rounds("data", "build", MINI, store=undisturbed)
    assert "nothing was left to do" in said and "15,468" in said and "≤" not in said
