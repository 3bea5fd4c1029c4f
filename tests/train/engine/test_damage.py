"""Finished results that are not what was written: told with stage, file, both digests and one command, and never computed on.

Covers: train/commands/clean, train/commands/verify, train/launch/contents.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rounds.data_prep.errors import UserError
from rounds.train import cli
from rounds.train.config import recipe
from rounds.train.config.cluster import Machine, StoreAccess
from rounds.train.engine import claims, damage, digests, policy, runs, store, worker
from rounds.train.engine.digests import Memory
from rounds.train.launch import contents
from rounds.train.plan import pipeline
from rounds.train.plan.pipeline import Plan
from tests import staged

RECIPE = Path(__file__).parents[1] / "mini.yaml"
LIGHT = ["source.facts", "source.facts_heldout", "source.answers_heldout", "source.pairs_heldout", "data.sft"]


def plan_of(root: Path) -> Plan:
    return pipeline.build_plan(recipe.load(RECIPE), root, RECIPE.parent)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the rows of the small recipe's SFT, which need no torch. Nobody may change it."""
    root = tmp_path_factory.mktemp("light")
    plan = plan_of(root)
    for name in LIGHT:
        worker.run(worker.Job(folder=store.prepare(root, plan.stage(name)), machine=Machine()))
    runs.remember_run(root, plan.recipe.name, str(RECIPE), list(plan.stages))
    return root


@pytest.fixture
def root(light: Path, tmp_path: Path) -> Path:
    """A copy of that store, free to spoil."""
    return Path(shutil.copytree(light, tmp_path / "store"))


def rounds(*arguments: str | Path, expect: int = 0) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == expect, done.output
    return done.output


def flip(path: Path) -> None:
    """Change one bit, and no time that `ls` shows."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def other_status(path: Path) -> None:
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "counts": {**plain["counts"], "records": 1_000_000}}))


HARM: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a flipped bit": ("records.parquet", flip, "has another content than was written"),
    "a cut file": ("records.parquet", lambda path: path.write_bytes(path.read_bytes()[:-9]), "were written"),
    "an empty file": ("records.parquet", lambda path: path.write_bytes(b""), "has 0 bytes"),
    "a link": ("records.parquet", lambda path: path.symlink_to(path.rename(path.with_suffix(".moved"))), "is a link"),
    "a count that was edited": ("done.json", other_status, "was changed"),
    "a done.json that lists nothing": ("done.json", lambda path: path.write_text('{"status": "done"}'), "lists no file"),
}


@pytest.mark.parametrize(("file", "harm", "says"), HARM.values(), ids=HARM.keys())
def test_whatever_harms_a_result_is_told_before_anything_runs(root: Path, file: str, harm: Callable[[Path], object], says: str):
    stage = plan_of(root).stage("data.sft")
    folder = store.folder(root, stage)
    rows = digests.file_digest(folder / "records.parquet")
    harm(folder / file)
    told = rounds("run", RECIPE, "--store", root, expect=1)
    assert f"data.sft ({folder.name}) is damaged: {file}" in told and says in told
    assert f"`rounds clean {folder.name} --store {root} && rounds run {RECIPE} --store {root}`" in told
    if file != "done.json" and not (folder / file).is_symlink():
        assert rows in told and digests.file_digest(folder / file) in told
    assert "damaged" in rounds("plan", RECIPE, "--store", root)
    assert "damaged" in rounds("show", "data.sft", "--store", root)
    assert "damaged" in rounds("status", RECIPE, "--store", root)
    assert "damaged" in rounds("data", "stats", RECIPE, "--store", root, expect=1)
    assert "damaged" in rounds("data", "preview", RECIPE, "--source", "facts", "--store", root, expect=1)
    assert f"data.sft ({folder.name}) is damaged" in rounds("verify", RECIPE, "--store", root, expect=1)
    rounds("clean", folder.name, "--store", root)
    assert not folder.exists() and not list(root.glob(".removed-*"))
    worker.run(worker.Job(folder=store.prepare(root, stage), machine=Machine()))
    assert digests.file_digest(folder / "records.parquet") == rows
    assert "5 of 5 finished stages are whole" in rounds("verify", RECIPE, "--store", root)


def test_a_stage_that_reads_what_is_damaged_does_not_begin(root: Path):
    plan = plan_of(root)
    source, data = (store.folder(root, plan.stage(name)) for name in ("source.facts", "data.sft"))
    written = digests.file_digest(source / "records.parquet")
    shutil.rmtree(data)
    flip(source / "records.parquet")
    with pytest.raises(UserError, match=r"source\.facts \(source-\w+\) is damaged: records\.parquet") as error:
        worker.run(worker.Job(folder=store.prepare(root, plan.stage("data.sft")), machine=Machine()))
    assert written in str(error.value) and f"rounds clean {source.name} --store {root}" in str(error.value)
    assert not (data / "done.json").exists() and (store.failure(data) or pytest.fail()).user_error


def test_a_result_of_before_sizes_and_seals_were_written_is_whole(root: Path):
    folder = store.folder(root, plan_of(root).stage("data.sft"))
    plain = json.loads((folder / "done.json").read_text())
    (folder / "done.json").write_text(json.dumps({name: plain[name] for name in plain if name not in ("sizes", "seal")}))
    assert damage.full(folder, Memory(root)) == []
    flip(folder / "records.parquet")
    assert [each.file for each in damage.full(folder, Memory(root))] == ["records.parquet"]


def test_a_file_that_was_read_here_as_it_is_now_is_not_read_again(root: Path):
    folder = store.folder(root, plan_of(root).stage("data.sft"))
    file, memory = folder / "records.parquet", Memory(root)
    memory.read([file])
    assert Memory(root).known(file) == digests.file_digest(file)
    flip(file)  # its time and size are as before; when its inode changed, nobody can set
    assert Memory(root).known(file) is None and Memory(root).changed(file)
    copy = file.with_name("copy")
    shutil.copy2(file, copy)
    memory.read([file])
    copy.replace(file)
    assert Memory(root).known(file) is None, "another file of the same size and time"


# Bookkeeping that says nothing

DEEP = "[" * 3000 + "]" * 3000
FILES = ["done.json", "failed.json", "holder.json", "progress.json", "slurm/job.json", "checks.json"]
CONTENTS = [
    "7",
    "[]",
    '"x"',
    "null",
    '{"a": 1}',
    DEEP,
    '{"a": ' * 3000 + "1" + "}" * 3000,
    "{",
    "",
    '{"status": 3, "pid": "x", "stages": [1]}',
]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_bookkeeping_of_wrong_types_is_never_a_traceback(root: Path, content: str, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no SLURM answers
    folder = store.folder(root, plan_of(root).stage("data.sft"))
    (folder / "slurm").mkdir()
    (root / "same").mkdir(exist_ok=True)
    paths = [*(folder / name for name in FILES), root / "digests.json", root / "shapes.json", root / "runs" / "mini.json"]
    for path in paths:
        path.write_text(content)
    for command in (["plan", RECIPE], ["status", RECIPE], ["verify", RECIPE], ["clean"], ["show", folder.name]):
        rounds(*command, "--store", root)
    assert claims.holder(folder) and claims.holding_process(folder) is None
    (folder / "stage.json").write_text(content)
    done = CliRunner().invoke(cli.app, ["show", folder.name, "--store", str(root)])
    assert done.exit_code == 1 and "is damaged: stage.json" in done.output
    rounds("plan", RECIPE, "--store", root)
    rounds("clean", "--store", root)
    (folder / "policy.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        policy.read(folder)


def test_a_pipe_in_place_of_a_file_holds_nobody_up(root: Path):
    folder = store.folder(root, plan_of(root).stage("data.sft"))
    (folder / "done.json").unlink()
    os.mkfifo(folder / "done.json")
    assert store.done(folder) is None
    rounds("status", RECIPE, "--store", root)


def test_who_held_a_stage_and_is_dead_is_not_waited_for(root: Path):
    folder = store.folder(root, plan_of(root).stage("data.sft"))
    with claims.claim(folder):
        assert claims.holding_process(folder) == os.getpid()
        dead = json.loads((folder / "holder.json").read_text()) | {"pid": 2**22 + 1}
    store.write_json(folder / "holder.json", dead)
    assert claims.holding_process(folder) is None
    store.write_json(folder / "holder.json", {**dead, "host": "elsewhere"})
    assert claims.holding_process(folder) == dead["pid"], "who can tell from here?"


# The store


def test_what_rows_of_ones_own_say_is_for_its_owner_alone(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    asset = digests.asset(tmp_path / "s", rows)
    modes_of: dict[StoreAccess, int | None] = {"owner": 0o700, "group": 0o770, "umask": None}
    for access, mode in modes_of.items():
        own = staged.stage("source.own", "source", {"use": {"source": "file"}}, {"path": asset})
        mixed = staged.stage("data.sft", "data", {}, {"source.own": own})
        scores = staged.stage("gate", "gate", {}, {"candidate_scores": mixed})
        shipped = staged.stage("source.facts", "source", {"use": {"source": "clinic_facts"}})
        modes = [store.prepare(tmp_path / access, stage, access).stat().st_mode & 0o777 for stage in (own, mixed, scores, shipped)]
        usual = modes[2]
        assert modes == [mode or usual, mode or usual, usual, usual]
    assert usual & 0o055


@pytest.mark.parametrize("where", ["", "log.txt", "records.parquet.partial", "model"])
def test_a_link_that_lies_in_the_store_is_not_followed(root: Path, tmp_path: Path, where: str):
    stage = plan_of(root).stage("data.sft")
    folder, target = store.folder(root, stage), tmp_path / "elsewhere"
    shutil.rmtree(folder)
    target.mkdir() if where in ("", "model") else target.write_text("mine")
    if where:
        folder.mkdir()
    (folder / where).symlink_to(target)
    with pytest.raises(UserError, match="is a link, which a store does not follow"):
        store.prepare(root, stage)
    assert (target.is_dir() and not list(target.iterdir())) or (target.is_file() and target.read_text() == "mine")


def test_clean_lists_by_run_what_is_held_and_removes_what_nobody_wants(root: Path):
    plan = plan_of(root)
    old = store.prepare(root, staged.stage("source.old", "source", {"use": {"source": "clinic_facts", "split": "old"}}))
    (old / "records.parquet").write_bytes(bytes(5000))
    listed = rounds("clean", "--store", root)
    assert "mini: " in listed and "no run: " in listed and "source.facts" in listed
    kept = {store.folder(root, plan.stage(name)) for name in LIGHT}
    assert "would remove " + old.name in rounds("clean", "--unwanted", "--dry-run", "--store", root) and old.exists()
    assert "1 stages, 5.3 KiB removed" in rounds("clean", "--unwanted", "--store", root)
    assert not old.exists() and all(folder.is_dir() for folder in kept)


def test_clean_removes_nothing_that_a_stage_at_work_reads(root: Path):
    plan = plan_of(root)
    source, data = (store.folder(root, plan.stage(name)) for name in ("source.facts", "data.sft"))
    pack = store.prepare(root, plan.stage("pack"))
    with claims.claim(pack):
        for folder in (source, data, pack):
            assert f"{folder.name} is read by {pack.name}" in rounds("clean", folder.name, "--store", root, expect=1)
    rounds("clean", source.name, "--store", root)
    assert not source.exists() and data.is_dir()


def test_what_attempts_that_were_cut_off_left_is_removed(root: Path):
    folder = store.folder(root, plan_of(root).stage("data.sft"))
    left = [folder / "failed.json.123.partial", folder / "holder.json", root / "digests.json.7.partial"]
    for path in left:
        path.write_text("{")
        os.utime(path, (1, 1))
    assert set(contents.leftovers(root)) == set(left)
    contents.sweep(contents.leftovers(root))
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("wanted", ["../elsewhere", "/"])
def test_clean_stays_in_its_store(root: Path, wanted: str):
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stage.json").write_text("{}")
    rounds("clean", elsewhere if wanted.startswith("..") else wanted, "--store", root, expect=1)
    assert (elsewhere / "stage.json").exists()
