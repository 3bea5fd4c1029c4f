"""A recipe is fetched from a hub on 127.0.0.1 through the real client, and runs where no socket can reach anything."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fake_hub import FakeHub

from data_prep import sources

MODEL, COMMIT = "made/tiny-llama", "a" * 40
CLUSTER = Path(__file__).parent / "mini_cluster.yaml"
WAIT_SECONDS = 300
ASKED = ["What does {} do?", "Tell me how {} works.", "How does {} act?", "Explain {} to a student.", "Name {} again."]
DRUGS = "aspirin heparin metformin omeprazole salbutamol warfarin furosemide naloxone".split()
RECIPE = {
    "name": "hub-mini",
    "base": {"kind": "hub", "id": MODEL, "revision": COMMIT},
    "sources": {
        "cards": {"source": "medical_flashcards"},
        "ultra": {"source": "ultrafeedback", "split": "train_prefs"},
        "ultra_test": {"source": "ultrafeedback", "split": "test_prefs"},
        "snorkel_2": {"source": "snorkel", "split": "train_iteration_2"},
        "exam": {"source": "medqa", "split": "test"},
    },
    "filters": ["exact_dedup"],
    "sft": {"data": ["cards"], "max_length": 128, "global_batch_size": 4, "learning_rate": 1e-3},
    "rounds": [
        {"name": name, "data": [data], "max_length": 128, "global_batch_size": 8, "learning_rate": 1e-4}
        for name, data in (("first", "ultra"), ("second", "snorkel_2"))
    ],
    "evaluate": {
        "tasks": [{"task": "choice_likelihood", "name": "exam", "source": "exam"}, "medqa_4options"],
        "preferences": "ultra_test",
        "num_answers": 2,
        "max_new_tokens": 4,
    },
    "wandb": "off",
}


def parquet(rows: Sequence[dict]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def pair(number: int, asked: str) -> dict:
    question = asked.format(DRUGS[number % 8])
    sides = {
        name: [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for name, answer in (("chosen", f"It helps in case {number}."), ("rejected", "Nobody knows."))
    }
    return {"prompt": question, "prompt_id": f"p{number}", **sides, "score_chosen": 8.0, "score_rejected": 2.0}


def exam(number: int) -> dict:
    endings = {f"ending{place}": f"{drug} {number}" for place, drug in enumerate(DRUGS[:4])}
    return {"id": f"e{number}", "sent1": f"Case {number}. Which drug?", "sent2": "", **endings, "label": number % 4}


def put_up(hub: FakeHub, model: Path) -> None:
    """Serve our own rows under the ids and commits that the sources pin, in the layout of each repository."""
    files = {path.name: path.read_bytes() for folder in ("tokenizer", "model") for path in (model / folder).iterdir()}
    hub.add("models", MODEL, COMMIT, {**files, "pytorch_model.bin": b"never fetched", "code.py": b"raise SystemExit"})
    pairs = [pair(number, asked) for number, asked in enumerate(ASKED * 4)]
    cards = [{"instruction": "Answer.", "input": f"{asked.format(drug)}", "output": f"{drug} helps."}
             for drug in DRUGS for asked in ASKED]  # fmt: skip
    rows = {
        "ultrafeedback": {"train_prefs": pairs[:16], "test_prefs": pairs[16:]},
        "snorkel": {"train_iteration_2": pairs[:16], "test_iteration_2": pairs[16:]},
        "medqa": {split: [exam(number) for number in range(6)] for split in ("train", "validation", "test")},
    }
    for name, splits in rows.items():
        source = sources.load(name)
        content = {f"data/{split}-00000-of-00001.parquet": parquet(each) for split, each in splits.items()}
        hub.add("datasets", str(source.repository), str(source.revision), content)
    flashcards = sources.load("medical_flashcards")
    content = {"cards.json": json.dumps(cards).encode(), "README.md": b"---\nlicense: cc\n---\n"}
    hub.add("datasets", str(flashcards.repository), str(flashcards.revision), content)


def rounds(*arguments: str | Path, store: Path, expect: int = 0, hub: FakeHub | None = None, token: str = "") -> str:
    """Run the command line: with a hub to ask, or where nothing can be asked. Returns all that it printed."""
    command = [sys.executable, "-m", "train.cli", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "ROUNDS_STORE": str(store), "COLUMNS": "300", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # What a person's own cache holds must not help.
    environment |= {"HOME": str(store.parent), "HF_HOME": str(store.parent / "own-cache")}
    if hub:
        environment |= {"HF_ENDPOINT": hub.endpoint} | ({"HF_TOKEN": token} if token else {})
    else:
        command, environment = blocked(command, environment, store.parent)
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=WAIT_SECONDS)
    output = process.stdout + process.stderr
    assert process.returncode == expect, output
    assert "Traceback" not in output
    return output


def blocked(command: list[str], environment: dict[str, str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """Put a command into a network namespace without any interface; where that is not allowed, block its sockets."""
    namespace = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*namespace, "true"], capture_output=True).returncode == 0:
        return [*namespace, *command], environment
    (folder / "blocked").mkdir(exist_ok=True)
    (folder / "blocked" / "sitecustomize.py").write_text(
        "import socket\n_connect = socket.socket.connect\n"
        "def connect(self, address):\n"
        "    if self.family != socket.AF_UNIX:\n        raise OSError('no network in this test')\n"
        "    return _connect(self, address)\nsocket.socket.connect = connect\n"
        "def getaddrinfo(*_, **__):\n    raise OSError('no network in this test')\nsocket.getaddrinfo = getaddrinfo\n"
    )
    path = os.pathsep.join([str(folder / "blocked"), environment.get("PYTHONPATH", "")])
    return command, {**environment, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def hub(made_base: Path) -> Iterator[FakeHub]:
    with FakeHub(tokens={"hf_ours"}) as served:
        put_up(served, made_base)
        yield served


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def fetched(hub: FakeHub, recipe: Path, tmp_path_factory) -> tuple[Path, str]:
    """The folder that a fetch filled, and what it printed."""
    folder = tmp_path_factory.mktemp("fetched") / "home"
    return folder, rounds("fetch", recipe, "--to", folder, store=folder.parent / "store", hub=hub)


def test_a_fetch_lists_what_it_got(fetched) -> None:
    folder, output = fetched
    print(output)
