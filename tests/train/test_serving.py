"""An export is opened by what serves it, with the greedy answers of transformers: vLLM, and llama.cpp after its own converter.

What Ollama's Modelfile writes is given to llama.cpp too, as Ollama does. vLLM is in an environment of its own (`scripts/setup_vllm`);
llama.cpp comes as the PyPI package xllamacpp, its converter in the source of llama-cpp-python, both into an environment of the test's.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rounds.data_prep.records import Conversation
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy
from rounds.train.stages import export
from rounds.train.tokens import modelfile
from rounds.train.weights import models
from tests import staged
from tests.train.tokens.test_modelfile import go_subset, go_template

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real_model")]

REPOSITORY = Path(__file__).resolve().parents[2]
VLLM = Path(os.environ.get("ROUNDS_VLLM_PYTHON", REPOSITORY / ".venv-vllm" / "bin" / "python"))
CPU = Machine(device="cpu", threads=1)
NEW_TOKENS = 16
TALKS = [
    [{"role": "user", "content": "What does aspirin do?"}],
    [{"role": "system", "content": "Answer as a pharmacist."}, {"role": "user", "content": "How does heparin act?"}],
    [
        {"role": "user", "content": "Name a drug for pain."},
        {"role": "assistant", "content": "Ibuprofen."},
        {"role": "user", "content": "And another?"},
    ],
]
ASK_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    folder, talks, length = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    model = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=256, seed=0)
    told = model.chat(talks, SamplingParams(temperature=0, max_tokens=length), use_tqdm=False)
    print(json.dumps([[each.prompt_token_ids, each.outputs[0].text] for each in told]))
"""
ASK_LLAMA_CPP = """
import json, sys, xllamacpp
file, talks, texts, length = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = file, 512, 1
server = xllamacpp.Server(params)
asked = {"max_tokens": length, "temperature": 0, "top_k": 1}
chats = [server.handle_chat_completions({"messages": talk, **asked}) for talk in talks]
plain = [server.handle_completions({"prompt": text, **asked}) for text in texts]
print(json.dumps([[[each["usage"]["prompt_tokens"], each["choices"][0]["message"]["content"]] for each in chats],
                  [[each["usage"]["prompt_tokens"], each["choices"][0]["text"]] for each in plain]]))
"""


def greedy(folder: Path) -> list[tuple[list[int], str]]:
    """Return prompt tokens and answer of each conversation, by transformers alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for talk in TALKS:
        prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        length = prompt["input_ids"].shape[1]
        ids = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        found.append((prompt["input_ids"][0].tolist(), tokenizer.decode(ids[length:], skip_special_tokens=True)))
    assert any(" " in answer for _, answer in found), "one token again and again would show little"
    return found


def asked(python: Path, code: str, *arguments: str) -> Any:
    """Run a script in another environment; returns the JSON on the last line that it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    script = Path(os.environ["PYTEST_SCRIPT"])
    script.write_text(code)
    environment = {**kept, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    run = subprocess.run([python, script, *arguments], capture_output=True, text=True, env=environment, timeout=1200)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return json.loads(next(line for line in reversed(run.stdout.splitlines()) if line.startswith("[[")))


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SCRIPT", str(tmp_path / "ask.py"))  # vLLM's engine imports the script again, so it is a file


@pytest.fixture
def real(run_stage: Callable, smollm2: Path, shelf: Path) -> Path:
    """The real model as stages `base` and `export` write it, with its Modelfile."""
    params = {"base": {"kind": "local"}, "chat_template": None}
    (shelf / "real").mkdir()
    described = staged.described("base", params, {"model": {"path": str(smollm2), "digest": "0" * 64}})
    (shelf / "real" / "stage.json").write_text(json.dumps(described))  # a policy reads there where its base is
    start, _ = run_stage("base", "real", params, {"model": smollm2})
    export._write_modelfile(shelf / "exported", export.write(start, "base", shelf / "exported", CPU))
    return shelf / "exported"


@pytest.fixture
def trained(run_stage: Callable, shelf: Path, put: Callable, conversations: list[Conversation]) -> Path:
    """A model of the quickstart's kind after some steps; vLLM's attention on CPUs takes heads of 32 numbers and wider."""
    tiny = {"kind": "tiny", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 600, "max_position_embeddings": 256}  # fmt: skip
    template = (REPOSITORY / "recipes" / "chat_templates" / "llama3.jinja").read_text()
    data = put("data", conversations)
    start, _ = run_stage("base", "start", {"base": tiny, "chat_template": template, "seed": 7}, {"corpus": data})
    rows, _ = run_stage("pack", "pack", {"max_length": 128}, {"tokenizer": start, "data": data})
    training = {"learning_rate": 5e-3, "global_batch_size": 2, "max_length": 128, "num_train_epochs": 8}
    sft, _ = run_stage("sft", "sft", {"training": training, "seed": 1}, {"policy": start, "rows": rows})
    assert policy.read(sft).weights and models.load_tokenizer(policy.read(sft)).chat_template
    export.write(sft, "base", shelf / "exported", CPU)
    return shelf / "exported"


@pytest.mark.parametrize("which", ["trained", "real"])
def test_vllm_answers_as_transformers_does(request: pytest.FixtureRequest, which: str):
    if not VLLM.is_file():
        pytest.skip(f"no vLLM at {VLLM}: scripts/setup_vllm makes it there, or name one's interpreter in ROUNDS_VLLM_PYTHON")
    folder = request.getfixturevalue(which)
    told = asked(VLLM, ASK_VLLM, str(folder), json.dumps(TALKS), str(NEW_TOKENS))
    assert [tuple(each) for each in told] == greedy(folder)


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An interpreter with llama.cpp, and its converter of Hugging Face folders."""
    place = tmp_path_factory.mktemp("llama_cpp")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", place, "llama-cpp-python==0.3.36"]
    for command in (["install", "xllamacpp==2026.10.11549", "sentencepiece==0.2.2"], ["download", *source]):
        run = subprocess.run([*pip, *command], capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"llama.cpp cannot be had here: {run.stderr.strip().splitlines()[-1]}")
    libraries = next((place / "venv" / "lib").glob("python*/site-packages"))
    (libraries / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")  # the converter reads with transformers and torch
    with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
        archive.extractall(
            place, [each for each in archive if "/vendor/llama.cpp/" in each.name and each.name.endswith(".py")], filter="data"
        )
    return python, next(place.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py"))


def test_llama_cpp_answers_as_transformers_does_also_by_the_modelfile(real: Path, llama_cpp: tuple[Path, Path]):
    python, converter = llama_cpp
    file = real / modelfile.GGUF
    converted = subprocess.run([python, converter, real, "--outfile", file, "--outtype", "f32"], capture_output=True, text=True)
    assert converted.returncode == 0, converted.stderr[-3000:]
    template = go_template((real / modelfile.NAME).read_text())
    texts = [go_subset(template, talk) for talk in TALKS]
    chats, plain = asked(python, ASK_LLAMA_CPP, str(file), json.dumps(TALKS), json.dumps(texts), str(NEW_TOKENS))
    expected = [[len(ids), answer] for ids, answer in greedy(real)]
    assert chats == expected
    assert plain == expected, "what Ollama's template writes"
