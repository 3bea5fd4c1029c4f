"""An exported folder says the same to transformers 4 as to 5: the rotary embedding, the type, the tokenizer and its template."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from rounds.train.engine import policy
from rounds.train.weights import models, portable

SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
TWO_KINDS = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
FAMILIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": None}),
    ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
    ("mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
    ("mixtral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "num_local_experts": 2}, {"rope_theta": 1e6}),
    ("gemma3_text", {"rope_parameters": TWO_KINDS}, {"rope_theta": 1e6, "rope_local_base_freq": 1e4}),
    ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}}, {"rope_theta": 2e4}),
]
IDS = ["llama", "llama 3.1", "qwen2", "mistral", "mixtral", "gemma 3", "gpt-neox"]
OPEN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
text = tokenizer.apply_chat_template([{"role": "user", "content": "Is it safe?"}], add_generation_prompt=True, tokenize=False)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
with torch.no_grad():
    logits = model(torch.arange(5, 69)[None]).logits[0, -1]
ids = tokenizer(text, add_special_tokens=False)["input_ids"]
ends = model.generation_config.eos_token_id
print(json.dumps({"version": __version__, "text": text, "ids": ids, "logits": logits.tolist(), "ends": ends}))
"""


@pytest.fixture
def tokenizer(shelf: Path) -> PreTrainedTokenizerBase:
    return models.load_tokenizer(policy.read(shelf / "base"))


def exported(folder: Path, kind: str, changes: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE | changes)
    models.save_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), tokenizer, folder)
    portable.make(folder, tokenizer)
    return folder


@pytest.mark.parametrize(("kind", "changes", "older"), FAMILIES, ids=IDS)
def test_both_spellings_stand_in_the_config_and_mean_the_same(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: str, changes: dict[str, Any], older: dict[str, Any]
):
    written = json.loads((exported(tmp_path / "model", kind, changes, tokenizer) / "config.json").read_text())
    assert {name: written[name] for name in older} == older
    assert written["torch_dtype"] == "bfloat16"
    again = AutoConfig.from_pretrained(tmp_path / "model")
    assert again.dtype == torch.bfloat16
    asked = changes["rope_parameters"]
    for name, value in asked.items():
        assert again.rope_parameters[name] == value or again.rope_parameters[name].items() >= value.items()


def test_the_tokenizer_is_of_a_class_that_both_know_and_has_its_template(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    folder = exported(tmp_path / "model", "llama", {}, tokenizer)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["chat_template"] == tokenizer.chat_template and "extra_special_tokens" not in written
    assert not {"is_local", "local_files_only", "backend"} & written.keys()
    again = AutoTokenizer.from_pretrained(folder)
    text = "Take 5 mg.<|eot_id|><|start_header_id|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.all_special_tokens == tokenizer.all_special_tokens


@pytest.mark.slow
def test_transformers_4_opens_it_with_the_same_logits_ids_and_template(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    place = tmp_path / "older"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    older = place / "bin" / "python"
    wanted = ["transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.0"]
    installed = subprocess.run([older, "-m", "pip", "install", "-q", "--no-deps", *wanted], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    libraries = next((place / "lib").glob("python*/site-packages"))
    (libraries / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch and what else both need
    for (kind, changes, _), name in zip(FAMILIES, IDS, strict=True):
        folder = exported(tmp_path / name.replace(" ", "-"), kind, changes, tokenizer)
        told = {}
        for python in (older, sys.executable):
            run = subprocess.run([str(python), "-c", OPEN, str(folder)], capture_output=True, text=True)
            assert run.returncode == 0, f"{name}: {run.stderr[-2000:]}"
            found = json.loads(run.stdout.splitlines()[-1])
            told[found.pop("version")[0]] = found
        new, old = told["5"], told["4"]
        ours, theirs = torch.tensor(new.pop("logits")), torch.tensor(old.pop("logits"))
        assert old == new, name
        assert (ours - theirs).abs().max() < 0.02, name
