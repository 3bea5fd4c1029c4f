"""The campaign disturbs the small recipe, finds nothing, and says how often; what it must find, it finds."""

import importlib.machinery
import importlib.util
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "campaign"


@pytest.fixture(scope="module")
def campaign() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("campaign", str(SCRIPT))
    spec = importlib.util.spec_from_loader("campaign", loader)
    assert spec
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


def test_a_few_disturbances_of_a_run_end_as_if_there_were_none(undisturbed: Path, tmp_path: Path):
    asked = [
        "--undisturbed",
        undisturbed,
        "--folder",
        tmp_path,
        "--disturbances",
        "4",
        "--seed",
        "3",
        "--kinds",
        "flip",
        "kill",
        "cut",
        "gone",
    ]
    run = subprocess.run([sys.executable, SCRIPT, *asked], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    table = run.stdout.splitlines()[-7:]
    assert table[0].split() == ["disturbance", "went", "on", "told", "and", "mended", "FAILED", "times"]
    assert table[-2].split()[0] == "all" and table[-2].split()[-2:] == ["0", "4"]


def test_wrong_bytes_behind_a_good_exit_code_are_found(campaign: ModuleType, undisturbed: Path, tmp_path: Path):
    place = tmp_path / "store"
    shutil.copytree(undisturbed, place)
    args: Any = SimpleNamespace(folder=tmp_path, undisturbed=place, seed=0, recipe=campaign.ROOT / "tests/train/mini.yaml")
    args.cluster = campaign.ROOT / "tests/train/mini_cluster.yaml"
    made = campaign.Campaign(args)
    store, _ = made.copy(random.Random(1), whole=True)
    made.compare(store)
    scores = next(store.glob("evaluate-*/scores.json"))
    scores.write_text(scores.read_text().replace("0.", "0.1", 1))
    with pytest.raises(campaign.Wrong, match=r"other results than undisturbed: evaluate-\w+/scores.json$"):
        made.compare(store)
    assert made.mend(store, notes := []) == "told and mended" and "To mend it: `rounds clean evaluate-" in notes[0]
