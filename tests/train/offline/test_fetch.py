"""A recipe is fetched from a hub on 127.0.0.1 through the real client, and runs where no socket can reach anything.

Covers: train/commands/fetch, train/display/sources, train/offline/folder, train/offline/needs, train/offline/rehearsal.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError
from rounds.train.config import cluster
from rounds.train.display import sources as source_display
from rounds.train.offline import fetch as fetching
from rounds.train.offline import folder as offline_folder
from rounds.train.offline.needs import Need
from tests.train.offline.fake_hub import FakeHub

pytestmark = pytest.mark.xdist_group("fetch")  # one hub and one fetched folder

MODEL, COMMIT = "made/tiny-llama", "a" * 40
CLUSTER = Path(__file__).parents[1] / "mini_cluster.yaml"
WAIT_SECONDS = 300
ASKED = ["What does {} do?", "Tell me how {} works.", "How does {} act?", "Explain {} to a student.", "Name {} again."]
DRUGS = ["aspirin", "heparin", "metformin", "omeprazole", "salbutamol", "warfarin", "furosemide", "naloxone"]
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
        "answers": [{"name": "answers", "source": "ultra_test", "max_rows": 2, "max_new_tokens": 4}],
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


@pytest.fixture(scope="session")
def model(made_base: Path, tmp_path_factory) -> Path:
    """The tiny model as one folder, its weights in several files as a large model's are."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM.from_pretrained(made_base / "model").save_pretrained(folder, max_shard_size="60KB")
    return Path(shutil.copytree(made_base / "tokenizer", folder, dirs_exist_ok=True))


def put_up(hub: FakeHub, model: Path) -> None:
    """Serve our own rows under the ids and commits that the sources pin, in the layout of each repository."""
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub.add("models", MODEL, COMMIT, {**files, "pytorch_model.bin": b"never fetched", "code.py": b"raise SystemExit"})
    pairs = [pair(number, asked) for number, asked in enumerate(ASKED * 4)]
    cards = [{"instruction": "Answer.", "input": f"{asked.format(drug)}", "output": f"{drug} helps."} for drug in DRUGS for asked in ASKED]
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
    command = [sys.executable, "-m", "rounds.train.cli", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "ROUNDS_STORE": str(store), "COLUMNS": "300", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # What a person's own cache holds must not help.
    environment |= {"HOME": str(store.parent), "HF_HOME": str(store.parent / "own-cache")}
    if hub:
        environment |= {"HF_ENDPOINT": hub.endpoint} | ({"HF_TOKEN": token} if token else {})
    else:
        shared = next((each for each in arguments if isinstance(each, Path) and (each / "fetched.json").is_file()), None)
        command, environment = blocked(command, environment, store.parent, shared)
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=WAIT_SECONDS)
    output = process.stdout + process.stderr
    assert process.returncode == expect, output
    assert "Traceback" not in output
    return output


def blocked(command: list[str], environment: dict[str, str], folder: Path, shared: Path | None) -> tuple[list[str], dict[str, str]]:
    """Put a command into a network namespace without any interface; where that is not allowed, block its sockets.

    In the namespace the fetched folder is read-only, as one that many share is.
    """
    namespace = ["unshare", "--map-root-user", "--net", "--mount"]
    if shutil.which("unshare") and subprocess.run([*namespace, "true"], capture_output=True).returncode == 0:
        if shared:
            mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"; exec "$@"'
            namespace += ["sh", "-c", mount, str(shared)]
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
def hub(model: Path) -> Iterator[FakeHub]:
    with FakeHub(tokens={"hf_ours"}) as served:
        put_up(served, model)
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


@pytest.fixture
def copied(fetched, tmp_path) -> Path:
    """A copy of that folder, free to spoil."""
    return Path(shutil.copytree(fetched[0], tmp_path / "home", symlinks=True))


def listed(folder: Path) -> dict[str, dict]:
    return {asset["name"]: asset for asset in json.loads((folder / "fetched.json").read_text())["assets"]}


def test_a_fetch_lists_what_it_got_and_tries_it_without_the_hub(fetched, hub, model) -> None:
    folder, output = fetched
    assets = listed(folder)
    fetched_model = assets[MODEL]
    assert (fetched_model["kind"], fetched_model["revision"]) == ("model", COMMIT)
    assert {Path(name).name for name in fetched_model["files"]} == {path.name for path in model.iterdir()}
    assert sum(name.endswith(".safetensors") for name in fetched_model["files"]) > 1
    assert "hub-mini: sft" in fetched_model["stages"]
    snorkel = sources.load("snorkel")
    entry = assets[str(snorkel.repository)]
    assert (entry["revision"], entry["stages"]) == (snorkel.revision, ["hub-mini: source.snorkel_2"])
    for asset in assets.values():
        for name, known in asset["files"].items():
            content = (folder / name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (known["size"], known["sha256"])
    task = assets["medqa_4options"]
    assert task["datasets"][0] == {
        "repository": "GBaker/MedQA-USMLE-4-options-hf",
        "configuration": None,
        "revision": sources.load("medqa").revision,
    }
    assert sum(name.endswith(".arrow") for name in task["files"]) == 3
    assert "ok       source.ultra: 16 of the first 16 rows become records" in output
    assert "ok       task medqa_4options: 1 subtasks, 6 rows" in output
    assert not [request for request in hub.requests if "pytorch_model" in request or "code.py" in request]


def test_no_token_is_written(fetched, hub, recipe, tmp_path) -> None:
    rounds(
        "fetch",
        recipe,
        "--to",
        tmp_path / "home",
        "--set",
        "evaluate=",
        store=tmp_path / "store",
        hub=hub,
        token="hf_ours",
    )
    assert not subprocess.run(["grep", "-r", "hf_ours", tmp_path], capture_output=True).stdout


def test_the_whole_loop_runs_with_sockets_blocked(fetched, hub, recipe, tmp_path) -> None:
    folder, _ = fetched
    own = ["--set", "evaluate.tasks=[{task: choice_likelihood, name: exam, source: exam}]"]
    before = len(hub.requests)
    output = rounds("run", recipe, *own, "--offline", folder, "--cluster", CLUSTER, store=tmp_path / "store")
    assert "exam/acc" in output
    assert len(hub.requests) == before
    keys = rounds("plan", recipe, *own, "--keys", store=tmp_path / "online", hub=hub)
    done = {path.parent.name.rpartition("-")[2] for path in (tmp_path / "store").glob("*/done.json")}
    assert done == {line.split()[1] for line in keys.splitlines()}


@pytest.mark.slow
def test_a_task_of_lm_evals_own_runs_with_sockets_blocked(fetched, recipe, tmp_path) -> None:
    only = ["--set", "sft=", "--set", "rounds=[]", "--set", "evaluate.tasks=[medqa_4options]"]
    output = rounds("run", recipe, *only, "--offline", fetched[0], "--cluster", CLUSTER, store=tmp_path / "store")
    assert "medqa_4options/acc" in output


def test_everything_missing_is_named_at_once_before_any_work(copied, recipe, tmp_path) -> None:
    assets = listed(copied)
    weights = next(name for name in assets[MODEL]["files"] if name.endswith(".safetensors"))
    cards = next(name for name in assets["medalpaca/medical_meadow_medical_flashcards"]["files"] if name.endswith("cards.json"))
    (copied / weights).resolve().unlink()
    (copied / cards).write_bytes((copied / cards).read_bytes().replace(b"helps", b"harms"))
    kept = [asset for asset in assets.values() if asset["name"] != "medqa_4options"]
    (copied / "fetched.json").write_text(json.dumps({"assets": kept}))
    store = tmp_path / "store"
    own = [
        "--set",
        "sources.mine={source: file, format: question_answer, path: /no/such.jsonl, licence: ours}",
        "--set",
        "sft.data=[cards, mine]",
    ]
    output = rounds("run", recipe, *own, "--offline", copied, store=store, expect=1)
    assert "/no/such.jsonl: no such file" in output
    assert f"model {MODEL} at {COMMIT} (for base, " in output
    assert f"{weights} is gone" in output
    assert f"{cards} has another content than was fetched" in output
    assert "task medqa_4options (for evaluate.base, " in output
    assert f"rounds fetch {recipe} --set " in output and f" --to {copied}" in output
    assert not list(store.glob("*/stage.json"))
    again = rounds("run", recipe, "--offline", tmp_path / "nowhere", store=store, expect=1)
    assert again.count("not fetched") == 6


def test_what_is_done_needs_no_files_and_a_check_reads_them_again(copied, recipe, tmp_path) -> None:
    """Digests are remembered by size and time; a disk that lies about both is found with --check."""
    (tmp_path / "cluster.yaml").write_text(f"offline: true\nfetched: home\n{CLUSTER.read_text()}")
    only = ["--set", "sft=", "--set", "rounds=[]", "--set", "evaluate={preferences: ultra_test}"]
    run = ["run", recipe, *only, "--cluster", tmp_path / "cluster.yaml"]
    assert "preferences/accuracy" in rounds(*run, store=tmp_path / "store")
    files = listed(copied)["HuggingFaceH4/ultrafeedback_binarized"]["files"]
    path = next(copied / name for name in files if "test_prefs" in name).resolve()
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-5] + b"spoil")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "nothing was left to do" in rounds(*run, "--check", store=tmp_path / "store")
    changed = [*run, "--set", "sources.ultra_test.max_rows=3", "--check"]
    assert "has another content than was fetched" in rounds(*changed, store=tmp_path / "store", expect=1)


def test_a_broken_fetch_goes_on_where_it_was(model, recipe, tmp_path) -> None:
    with FakeHub() as hub:
        put_up(hub, model)
        only = ["--set", "evaluate={preferences: ultra_test}", "--to", tmp_path / "home"]
        hub.cut_after = 2000
        output = rounds("fetch", recipe, *only, store=tmp_path / "store", hub=hub, expect=1)
        assert f"error: {MODEL} at {COMMIT} cannot be loaded from the hub" in output
        assert "the same command goes on from here" in output
        hub.cut_after = None
        assert "ok       model" in rounds("fetch", recipe, *only, store=tmp_path / "store", hub=hub)
        before = [request for request in hub.requests if "/resolve/" in request and request.startswith("GET")]
        rounds("fetch", recipe, *only, store=tmp_path / "store", hub=hub)
        assert [each for each in hub.requests if "/resolve/" in each and each.startswith("GET")] == before


def test_all_that_the_hub_refuses_is_one_message(model, recipe, tmp_path) -> None:
    with FakeHub(tokens={"hf_ours"}) as hub:
        put_up(hub, model)
        hub.repositories["models", MODEL].gated = True
        hub.repositories["datasets", "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset"].commit = "b" * 40
        del hub.repositories["datasets", "medalpaca/medical_meadow_medical_flashcards"]
        fetch = ["fetch", recipe, "--set", "evaluate=", "--to", tmp_path / "home"]
        output = rounds(*fetch, store=tmp_path / "store", hub=hub, expect=1)
        assert f"accept its licence at {hub.endpoint}/{MODEL} and set HF_TOKEN" in output
        assert "no commit 1fb8cdacb54a8a2393cc3cbf1078b2ec30ddc30c" in output
        assert "medical_flashcards (for source.cards): no such repository, or a private one" in output
        assert "nothing was" in output
        assert not [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
        with_token = rounds(*fetch, "--dry-run", store=tmp_path / "store", hub=hub, expect=1, token="hf_ours")
        assert MODEL not in with_token


def test_too_little_room_is_told_before_anything_is_fetched(model, recipe, tmp_path) -> None:
    with FakeHub() as hub:
        put_up(hub, model)
        hub.claimed[next(path.name for path in model.glob("*.safetensors"))] = 10**15
        output = rounds(
            "fetch",
            recipe,
            "--set",
            "evaluate=",
            "--to",
            tmp_path / "home",
            store=tmp_path / "store",
            hub=hub,
            expect=1,
        )
        assert "949949.0 GiB are to be fetched" in output


def test_a_source_of_few_files_opens_without_the_others(tmp_path) -> None:
    """What is fetched of a large repository, and of a further one that a source reads, is what the source asks for."""
    said = [("What is a stye?", "A lump."), ("And a boil?", "A lump, too.")]
    chats = [{"prompt_id": f"c{number}", "prompt": asked, "messages": [{"role": "user", "content": asked},
              {"role": "assistant", "content": answer}]} for number, (asked, answer) in enumerate(said)]  # fmt: skip
    orca = [{"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]} for asked, answer in said]
    tags = [{"id": f"cot.{number}", "system_prompt": "", "question": asked} for number, (asked, _) in enumerate(said)]
    content = {
        "ultrachat": {"data/train_sft-00000-of-00001.parquet": parquet(chats)},
        "slim_orca": {"oo-labeled_correct.gpt4.sharegpt.jsonl": "\n".join(map(json.dumps, orca)).encode()},
    }
    recipe = {
        "name": "few",
        "base": {"kind": "tiny"},
        "sources": {
            "chat": {"source": "ultrachat", "split": "train_sft"},
            "orca": {"source": "slim_orca", "split": "cot"},
        },
        "filters": [],
        "sft": {"data": ["chat", "orca"], "max_length": 64, "global_batch_size": 1, "learning_rate": 1e-3},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with FakeHub() as hub:
        for name, files in content.items():
            source = sources.load(name)
            hub.add("datasets", str(source.repository), str(source.revision), {**files, "data/gen-0.parquet": b"huge"})
            for other in source.companions:
                hub.add(
                    "datasets",
                    other.repository,
                    str(other.revision),
                    {other.files[0]: parquet(tags), "3M.parquet": b"huge"},
                )
        output = rounds("fetch", tmp_path / "recipe.yaml", "--to", tmp_path / "home", store=tmp_path / "store", hub=hub)
    assert "ok       source.chat: 2 of the first 2 rows become records" in output
    assert "ok       source.orca: 2 of the first 2 rows become records" in output
    assert not [request for request in hub.requests if "gen-0" in request or "3M" in request]


def test_a_hub_out_of_reach_is_told_at_once(recipe, tmp_path) -> None:
    unreachable = FakeHub()
    with unreachable:
        pass  # its port is closed again
    output = rounds("fetch", recipe, "--to", tmp_path / "home", store=tmp_path / "store", hub=unreachable, expect=1)
    assert f"error: {unreachable.endpoint} cannot be reached" in output


def test_the_datasets_of_a_task_are_found_through_groups_and_tags() -> None:
    """A dataset that two tasks share is counted once; a tag, which its tasks name again, is no endless way."""
    from lm_eval.tasks._index import Entry, Kind

    index = {
        "one": Entry("one", Kind.TASK, None, {"dataset_path": "org/one"}, {"both"}),
        "two": Entry("two", Kind.TASK, None, {"dataset_path": "org/two"}, {"both"}),
        "both": Entry("both", Kind.TAG, None, None, {"one", "two"}),
        "group": Entry("group", Kind.GROUP, None, {"task": ["both", {"task": "three"}]}),
        "three": Entry("three", Kind.TASK, None, {"dataset_path": "json"}),
    }
    assert fetching._datasets_of("group", index) == {"org/one", "org/two"}
    assert fetching._datasets_of("one", index) == {"org/one"}


def test_an_asset_serves_the_needs_that_it_includes() -> None:
    need = Need("dataset", "org/set", "c" * 40, ("a/*",), ("source.a",))
    asset = {"kind": "dataset", "name": "org/set", "revision": "c" * 40}
    assert offline_folder.find([{**asset, "patterns": ["a/*", "b/*"]}], need)
    assert offline_folder.find([{**asset, "patterns": []}], need)
    assert not offline_folder.find([{**asset, "patterns": ["b/*"]}], need)
    assert not offline_folder.find([{**asset, "patterns": ["a/*"]}], replace(need, patterns=()))
    assert not offline_folder.find([{**asset, "revision": "d" * 40, "patterns": []}], need)


def test_the_table_of_sources_tells_rows_commit_and_doubt() -> None:
    shown = rounds_table()
    assert re.search(r"snorkel +train_iteration_1 19,766 +pair +apache-2.0 +snorkelai/Snorkel\S+ +1fb8cdacb5", shown)
    assert re.search(r"bigbio/pubmed_qa \?", shown)
    assert "validation* 4,183" in shown


def rounds_table() -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(source_display.sources_table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_recipe_that_needs_nothing_says_so(tmp_path) -> None:
    quickstart = Path(__file__).parents[3] / "recipes" / "quickstart.yaml"
    assert "needs nothing from the hub" in rounds("fetch", quickstart, "--to", tmp_path / "home", store=tmp_path / "s")


def test_fetched_without_offline_is_a_mistake(tmp_path) -> None:
    (tmp_path / "cluster.yaml").write_text("fetched: home\n")
    with pytest.raises(UserError, match=r"cluster.yaml:1: fetched: is used only with `offline: true`"):
        cluster.load(tmp_path / "cluster.yaml")
