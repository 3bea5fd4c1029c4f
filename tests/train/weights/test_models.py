"""A model folder that is not whole is refused before anything trains: transformers would draw what is missing at random.

Covers: train/plan/model_config.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.config.recipe import Local
from rounds.train.plan import model_config
from rounds.train.weights import models
from tests import staged


@pytest.fixture
def folder(made_base: Path, tmp_path: Path) -> Path:
    """A folder as one has it from elsewhere: weights, config and tokenizer together."""
    place = tmp_path / "model"
    shutil.copytree(made_base / "model", place)
    shutil.copytree(made_base / "tokenizer", place, dirs_exist_ok=True)
    return place


def config(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "not a usable Hugging Face model folder"),
        (cut("tokenizer.json"), "not a usable Hugging Face model folder"),
        (config(hidden_size=7), "not a usable Hugging Face model folder: .*hidden size \\(7"),
        (cut("model.safetensors"), "cannot be opened as safetensors"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "cannot be opened as safetensors"),
        (config(num_hidden_layers=9), "weights are not there, such as model.layers.2"),
        (config(model_type="bert", architectures=["BertModel"]), "weights are not there, such as bert"),
        (config(vocab_size=50), "weights have other sizes than its config.json says, such as model.embed_tokens.weight"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(folder: Path, spoil: Callable[[Path], object], says: str):
    models.open_folder(str(folder))
    spoil(folder)
    with pytest.raises(UserError, match=says) as told:
        models.open_folder(str(folder))
    assert str(folder) in str(told.value) and "\n" not in str(told.value)


def test_quantised_weights_are_refused(folder: Path):
    config(quantization_config={"quant_method": "gptq", "bits": 4})(folder)
    with pytest.raises(UserError, match=r"its weights are quantised \(gptq\).*lora\.load_in_4bit"):
        models.open_folder(str(folder))


def test_a_config_that_names_a_kernel_of_the_hub_fetches_none(folder: Path):
    config(attn_implementation="kernels-community/flash-attn3")(folder)
    model, _ = models.open_folder(str(folder))
    assert model.config._attn_implementation == "eager"


def test_weights_that_are_no_numbers_end_at_base(folder: Path, tmp_path: Path):
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{re.escape(name)} holds values that are no finite numbers: the weights are damaged"):
        staged.run("base", {"base": {"kind": "local"}, "chat_template": None}, {"model": folder}, tmp_path, Machine())


@pytest.mark.parametrize(
    ("token", "special", "template", "refused"),
    [
        ("<|im_start|>", True, "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}"
                               "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}", True),
        ("<image>", True, None, False),
        ("troponin", False, None, True),
    ],
)  # fmt: skip
def test_tokens_that_will_be_written_need_an_embedding(
    folder: Path, tmp_path: Path, token: str, special: bool, template: str | None, refused: bool
):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = models.open_folder(str(folder))[0].config.vocab_size
    tokenizer.add_tokens([f"<fill_{number}>" for number in range(rows - len(tokenizer))])
    tokenizer.add_tokens([token], special_tokens=special)
    tokenizer.save_pretrained(folder)
    params = {"base": {"kind": "local"}, "chat_template": template}
    if not refused:
        staged.run("base", params, {"model": folder}, tmp_path, Machine())
        return
    with pytest.raises(UserError, match=f"embeddings for {rows} tokens.*such as '{re.escape(token)}'"):
        staged.run("base", params, {"model": folder}, tmp_path, Machine())


def test_weights_that_the_model_does_not_use_are_told(folder: Path, caplog: pytest.LogCaptureFixture):
    config(num_hidden_layers=1)(folder)
    with caplog.at_level(logging.WARNING, "rounds.train.weights.models"):
        models.open_folder(str(folder))
    assert "does not use 9 of the weights, such as model.layers.1" in caplog.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 256),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, None),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, None),
        ({"max_position_embeddings": None, "n_positions": 99}, 99),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({"max_position_embeddings": "many"}, None),
    ],
)
def test_the_longest_row_that_a_model_reads_is_in_its_config(folder: Path, changes: dict[str, Any], expected: int | None):
    config(**changes)(folder)
    assert model_config.limits(Local(kind="local", path=str(folder))).positions == expected
