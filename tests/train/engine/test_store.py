"""The store: digests by content, claims that die with their holder, and files that are whole or not there.

Covers: train/engine/claims, train/engine/digests, train/engine/records, train/engine/runs, train/engine/worker.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from rounds.data_prep.errors import UserError
from rounds.train.commands import options
from rounds.train.engine import claims, digests, runs, store
from rounds.train.engine.graph import Stage
from tests import staged

REPOSITORY = Path(__file__).resolve().parents[3]


# Digests


def model_folder(place: Path) -> Path:
    (place / "sub").mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "sub" / "weights.bin").write_bytes(b"weights")
    return place


def test_a_digest_is_of_the_content_wherever_it_lies(tmp_path: Path):
    one, two = model_folder(tmp_path / "one"), model_folder(tmp_path / "deep" / "two")
    assert digests.asset(tmp_path / "s1", one).digest == digests.asset(tmp_path / "s2", two).digest
    assert digests.asset(tmp_path / "s1", one / "config.json").digest == digests.asset(tmp_path / "s1", two / "config.json").digest
    one.rename(tmp_path / "moved")
    assert digests.asset(tmp_path / "s1", tmp_path / "moved").digest == digests.asset(tmp_path / "s1", two).digest


def changes() -> dict[str, Callable[[Path], object]]:
    return {
        "content": lambda folder: (folder / "sub" / "weights.bin").write_bytes(b"WEIGHTS"),
        "longer content": lambda folder: (folder / "config.json").write_text("{} "),
        "another file": lambda folder: (folder / "more.txt").write_text(""),
        "a file less": lambda folder: (folder / "config.json").unlink(),
        "another name": lambda folder: (folder / "config.json").rename(folder / "config2.json"),
        "another folder": lambda folder: (folder / "sub").rename(folder / "bus"),
    }


@pytest.mark.parametrize("change", changes().values(), ids=changes().keys())
def test_any_change_is_a_new_digest(tmp_path: Path, change: Callable[[Path], object]):
    folder = model_folder(tmp_path / "model")
    before = digests.asset(tmp_path / "store", folder).digest
    change(folder)
    assert digests.asset(tmp_path / "store", folder).digest != before


def test_what_git_keeps_beside_a_model_is_not_in_its_digest(tmp_path: Path):
    folder = model_folder(tmp_path / "model")
    before = digests.asset(tmp_path / "store", folder).digest
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    assert digests.asset(tmp_path / "store", folder).digest == before


def test_a_model_that_lies_under_a_folder_called_git_still_has_a_content(tmp_path: Path):
    one = model_folder(tmp_path / ".git" / "one")
    before = digests.asset(tmp_path / "store", one).digest
    (one / "config.json").write_text("[]")
    assert digests.asset(tmp_path / "store", one).digest != before


def test_the_memory_of_digests_gives_the_same_digest(tmp_path: Path):
    folder = model_folder(tmp_path / "model")
    first = digests.asset(tmp_path / "store", folder)
    assert (tmp_path / "store" / "digests.json").is_file()
    assert digests.asset(tmp_path / "store", folder) == first == digests.asset(tmp_path / "fresh", folder)


def test_a_broken_memory_of_digests_only_costs_the_memory(tmp_path: Path):
    folder = model_folder(tmp_path / "model")
    wanted = digests.asset(tmp_path / "store", folder).digest
    for content in ('{"a": "b', "", "[]", "null"):
        (tmp_path / "store" / "digests.json").write_text(content)
        assert digests.asset(tmp_path / "store", folder).digest == wanted


def test_nothing_at_the_path_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such file or folder"):
        digests.asset(tmp_path, tmp_path / "none")


# Claims

HOLD = """
import sys, time
from pathlib import Path
from rounds.train.engine import claims
with claims.claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen]]:
    """A stage folder that another process holds, and that process."""
    folder = tmp_path / "dpo-0123"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_kept_out_and_told_by_whom(held: tuple[Path, subprocess.Popen]):
    folder, process = held
    assert claims.is_held(folder)
    with (
        pytest.raises(UserError, match=f"dpo-0123 is being computed by process {process.pid} on"),
        claims.claim(folder, wait=False),
    ):
        pytest.fail("two hold the stage")
    assert claims.is_held(folder), "a refused claim must not free the stage"
    assert f"process {process.pid}" in claims.holder(folder)


def test_a_holder_that_was_killed_is_taken_over(held: tuple[Path, subprocess.Popen]):
    folder, process = held
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not claims.is_held(folder)
    with claims.claim(folder, wait=False):
        assert f"process {os.getpid()}" in claims.holder(folder)
    assert not (folder / "holder.json").exists()


def test_a_waiting_claim_gets_the_stage_when_the_holder_dies(held: tuple[Path, subprocess.Popen]):
    folder, process = held
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        process.kill()
        assert other.stdout and other.stdout.readline() == "held\n"
        assert claims.is_held(folder)
    finally:
        other.kill()
        other.communicate()


def test_a_claim_is_freed_by_an_exception(tmp_path: Path):
    with pytest.raises(RuntimeError), claims.claim(tmp_path):
        raise RuntimeError
    assert not claims.is_held(tmp_path)
    with claims.claim(tmp_path, wait=False):
        pass


def test_asking_whether_a_stage_is_held_leaves_no_trace(tmp_path: Path):
    assert not claims.is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


# JSON


@pytest.mark.parametrize("content", [b"", b'{"status": "do', b"{", b"\x00\x00\x00", b'{"a": "\xff'])
def test_a_half_written_file_is_read_as_none(tmp_path: Path, content: bytes):
    (tmp_path / "done.json").write_bytes(content)
    assert store.read_json(tmp_path / "done.json") is None
    assert store.done(tmp_path) is None


def test_json_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "done.json"
    assert store.read_json(path) is None
    store.write_json(path, {"a": [1, None, "ü"]})
    assert store.read_json(path) == {"a": [1, None, "ü"]}
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        store.write_json(path, {"a": path})
    assert store.read_json(path) == {"a": [1, None, "ü"]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["done.json"]


# Stages in their folders


@pytest.fixture
def stages(tmp_path: Path) -> tuple[Stage, Stage]:
    """A stage on a local file, and one on that stage."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    first = staged.stage("source.rows", "source", {"use": {"split": "train"}}, {"path": digests.asset(tmp_path / "s", rows)})
    return first, staged.stage("data.sft", "data", {"seed": 0}, {"source.rows": first})


def test_a_prepared_stage_knows_what_to_run_and_where_its_inputs_are(tmp_path: Path, stages: tuple[Stage, Stage]):
    root = tmp_path / "store"
    folders = [store.prepare(root, stage) for stage in stages]
    assert folders == [root / stage.folder_name for stage in stages]
    spec = json.loads((folders[1] / "stage.json").read_text())
    assert (spec["name"], spec["function"], spec["version"], spec["params"]) == ("data.sft", "data", 9, stages[1].params.stored())
    assert spec["params"]["seed"] == 0
    assert spec["after_stop"] is False and spec["inputs"] == {"source.rows": {"stage": stages[0].folder_name}}
    assert store.inputs(folders[0]) == {"path": tmp_path / "rows.jsonl"}
    assert store.inputs(folders[1]) == {"source.rows": folders[0]}
    root.rename(tmp_path / "moved")
    assert store.inputs(tmp_path / "moved" / stages[1].folder_name) == {"source.rows": tmp_path / "moved" / stages[0].folder_name}


def test_preparing_again_refreshes_local_paths_and_nothing_else(tmp_path: Path, stages: tuple[Stage, Stage]):
    root, (first, _) = tmp_path / "store", stages
    folder = store.prepare(root, first)
    before = (folder / "stage.json").stat().st_mtime_ns
    store.prepare(root, first)
    assert (folder / "stage.json").stat().st_mtime_ns == before
    moved = shutil.move(tmp_path / "rows.jsonl", tmp_path / "elsewhere.jsonl")
    again = Stage(first.name, first.kind, first.params, {"path": digests.asset(root, Path(moved))})
    assert store.prepare(root, again) == folder
    assert store.inputs(folder) == {"path": tmp_path / "elsewhere.jsonl"}


@pytest.mark.parametrize("content", ["", "null", "[1]", '{"version": 1}', '{"name": "hal'])
def test_a_damaged_description_is_told_and_written_again(tmp_path: Path, stages: tuple[Stage, Stage], content: str):
    folder = store.prepare(tmp_path, stages[0])
    whole = store.spec(folder)
    (folder / "stage.json").write_text(content)
    (folder / "done.json").write_text(content)
    assert store.done(folder) is None or content.startswith("{")
    with pytest.raises(UserError, match="is damaged"):
        store.spec(folder)
    assert store.spec(store.prepare(tmp_path, stages[0])) == whole


def test_side_files_are_no_result(tmp_path: Path):
    wanted = ["model/config.json", "model/deep/weights.bin", "rows.parquet", "scores.json"]
    side = ["stage.json", "log.txt", "progress.json", "failed.json", "done.json", "lock", "holder.json", "a.json.123.partial",
            "checkpoints/checkpoint-1/model.bin", "wandb/run/file", "cache/x.arrow"]  # fmt: skip
    for name in [*wanted, *side]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [str(path.relative_to(tmp_path)) for path in store.result_files(tmp_path)] == wanted


# Finding


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Stage, Stage]:
    """A store with two stages of two runs."""
    root = tmp_path / "store"
    one, two = (staged.stage("dpo.second", "dpo", {"beta": beta}) for beta in (0.1, 0.2))
    for name, stage in (("one", one), ("two", two)):
        store.prepare(root, stage)
        runs.remember_run(root, name, f"{name}.yaml", [stage])
    shared = staged.stage("sft", "sft", {})
    store.prepare(root, shared)
    runs.remember_run(root, "three", "three.yaml", [shared])
    return root, one, two


def test_a_stage_is_found_by_name_key_prefix_folder_and_path(run: tuple[Path, Stage, Stage]):
    root, one, _ = run
    wanted = root / one.folder_name
    assert runs.find(root, one.key) == wanted
    assert runs.find(root, one.folder_name) == wanted
    assert runs.find(root, one.folder_name[:-2]) == wanted
    assert runs.find(root, str(wanted)) == wanted
    assert runs.find(root, "sft").name.startswith("sft-")
    assert runs.find(root, one.key[:8]) == wanted


def test_a_name_that_fits_more_than_one_stage_lists_them(run: tuple[Path, Stage, Stage]):
    root, one, two = run
    for wanted in ("dpo.second", "dpo", "dpo-"):
        with pytest.raises(UserError, match="fits 2 stages") as error:
            runs.find(root, wanted)
        assert one.folder_name in str(error.value) and two.folder_name in str(error.value)


@pytest.mark.parametrize("wanted", ["dpo.third", "zzzz", "/no/such/folder", "..", "runs"])
def test_a_stage_that_is_not_there_is_a_user_error(run: tuple[Path, Stage, Stage], wanted: str):
    with pytest.raises(UserError, match="no stage"):
        runs.find(run[0], wanted)


def test_a_store_that_is_not_there_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="no stage"):
        runs.find(tmp_path / "none", "sft")


def test_the_last_run_of_a_recipe_is_remembered(run: tuple[Path, Stage, Stage]):
    root, one, _ = run
    entry = runs.last_run(root, "one")["dpo.second"]
    assert (entry["folder"], entry["params"], entry["version"]) == (one.folder_name, {"beta": 0.1}, 2)
    assert runs.last_run(root, "never") == {}


@pytest.fixture
def foreign_store() -> Iterator[Path]:
    """A store that this user may read and not write: another's, or with its write bits taken away."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "runs").mkdir()
    store.prepare(root, staged.stage("gate.one", "gate", {}))
    for entry in (*root.iterdir(), root):
        entry.chmod(0o555)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        yield root
    finally:
        if as_root:
            os.seteuid(0)
        for entry in (root, *root.iterdir()):
            entry.chmod(0o755)
        shutil.rmtree(root)


@pytest.mark.parametrize("name", ["gate.one", "gate.two"])
def test_a_store_that_one_may_not_write_is_told_with_its_mode_and_what_to_do(
    foreign_store: Path, name: str, capfd: pytest.CaptureFixture[str]
):
    """As a command tells it: a stage's folder of another's, or a new one."""
    params = {} if name == "gate.one" else {"rules": [{"metric": "other/acc", "at_least": 0}]}

    def command() -> None:
        store.prepare(foreign_store, staged.stage(name, "gate", params))

    with pytest.raises(typer.Exit):
        options.told(command)()
    said = capfd.readouterr().err
    assert f"store {foreign_store} (mode 0555): " in said and "you (" in said and "store_access: group" in said
    assert said.count("\n") == 1 and "Permission denied" not in said
