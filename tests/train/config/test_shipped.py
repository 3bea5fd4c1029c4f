"""What comes with Rounds is found by its name from any folder, the person's own files go first, and keys are the same either way.

Covers: train/config/yaml_file.
"""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rounds.train import cli
from rounds.train.commands import options
from rounds.train.config import cluster, recipe, shipped, yaml_file


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROUNDS_STORE", raising=False)
    return tmp_path


def rounds(*arguments: str, expect: int = 0) -> str:
    done = CliRunner().invoke(cli.app, [*arguments])
    assert done.exit_code == expect, done.output
    return done.output


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("quickstart", "recipe", "quickstart.yaml"),
        ("quickstart.yaml", "recipe", "quickstart.yaml"),
        ("recipes/quickstart.yaml", "recipe", "quickstart.yaml"),
        ("med42-v2-llama3.1-8b", "recipe", "med42-v2-llama3.1-8b.yaml"),
        ("stages", "recipe", "ablations/stages.yaml"),
        ("quickstart", "ablation", "ablations/quickstart.yaml"),
        ("ablations/stages", "ablation", "ablations/stages.yaml"),
        ("recipes/ablations/stages.yaml", "ablation", "ablations/stages.yaml"),
        ("slurm-8xh100", "cluster file", "clusters/slurm-8xh100.yaml"),
        ("clusters/local", "cluster file", "clusters/local.yaml"),
    ],
)
def test_a_name_leads_to_a_file(name, kind, expected):
    assert shipped.find(Path(name), kind) == shipped.RECIPES / expected


def test_every_shipped_file_is_found_by_the_name_that_a_command_is_written_with():
    for kind in ("recipe", "ablation", "cluster file"):
        for name in shipped.names(kind):
            file = shipped.find(Path(name), kind)
            assert shipped.find(Path(shipped.name_of(file)), kind) == file


def test_a_file_of_ones_own_goes_first_and_a_folder_of_that_name_does_not(elsewhere):
    (elsewhere / "quickstart").mkdir()
    (elsewhere / "recipes").mkdir()
    assert shipped.find(Path("quickstart"), "recipe") == shipped.RECIPES / "quickstart.yaml"
    (elsewhere / "recipes" / "quickstart.yaml").write_text("")
    own = Path("recipes/quickstart.yaml")
    assert shipped.find(own, "recipe") == own


def test_keys_are_the_same_by_name_and_by_path():
    by_name = rounds("plan", "quickstart", "--keys")
    assert by_name == rounds("plan", str(shipped.RECIPES / "quickstart.yaml"), "--keys")


def test_a_recipe_of_ones_own_extends_a_shipped_one(elsewhere):
    (elsewhere / "mine.yaml").write_text("extends: quickstart\nseed: 5\n")
    assert recipe.load(Path("mine.yaml")) == recipe.load(shipped.RECIPES / "quickstart.yaml", ("seed=5",))
    (elsewhere / "fast.yaml").write_text("extends: clusters/one-gpu\n")
    assert cluster.load(Path("fast.yaml")) == cluster.load(shipped.RECIPES / "clusters" / "one-gpu.yaml")


def test_an_ablation_of_ones_own_varies_a_shipped_recipe(elsewhere):
    (elsewhere / "seeds.yaml").write_text("name: s\nbase: quickstart\nbaseline: all\nvariants: {all: , less: {rounds: []}}\n")
    assert "less" in rounds("plan", "seeds.yaml")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("plan quikstart", ["quikstart: no such file, and Rounds ships no recipe", "Did you mean 'quickstart'?"]),
        ("run my-rum", ["my-rum: no such file", "Did you mean my-run.yaml?"]),
        ("plan my-run", ["Did you mean my-run.yaml?"]),
        ("ablate stage", ["ships no ablation of that name", "Did you mean 'stages'?"]),
        ("plan quickstart --cluster slrum", ["ships no cluster file of that name", "Did you mean 'slurm'?"]),
        ("status ../README", ["ships no recipe of that name", "Valid: "]),
    ],
)
def test_a_name_of_nothing_is_told_with_the_nearest(elsewhere, command, expected):
    (elsewhere / "my-run.yaml").write_text("name: my-run\n")
    said = " ".join(rounds(*shlex.split(command), expect=1).split())
    assert len(said) < 500
    for part in expected:
        assert part in said


def test_a_command_to_repeat_names_a_shipped_file_as_short_as_it_can(elsewhere):
    line = options.command_line(
        "run", shipped.RECIPES / "quickstart.yaml", None, shipped.RECIPES / "clusters" / "slurm.yaml", Path("store")
    )
    assert line == "rounds run quickstart --cluster clusters/slurm"


@pytest.mark.parametrize("file", sorted(shipped.RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_what_is_recorded_stands_in_a_line_of_the_recipe(file: Path):
    wandb = yaml_file.fields(file)["wandb"]
    assert wandb.keys() >= {"project", "mode"} and recipe.load(file).wandb
