"""What a policy writes is the same however it is spread, and whatever interrupts it.

Covers: train/engine/apart, train/launch/apart.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from rounds.data_prep import records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message, Question, prompt_of
from rounds.train.config.cluster import Machine
from rounds.train.engine import damage, policy, ranks, store, worker
from rounds.train.generation import samples
from rounds.train.stages import answers
from rounds.train.tokens import chat
from rounds.train.weights import models
from tests import staged
from tests.train.conftest import ASKED, FACTS

Run = Callable[..., tuple[Path, dict]]
SET = {"name": "open", "max_rows": None, "max_new_tokens": 8, "temperature": 1.0, "num_answers": 2, "system_prompt": None}


def params(**changes: object) -> dict:
    return {"sets": [{**SET, **changes}], "max_length": 256, "seed": 3}


@pytest.fixture
def talks() -> list[Conversation]:
    """Prompts enough for three blocks of two answers each."""
    return [
        Conversation(
            f"c{number}",
            "made",
            (Message("user", f"{ASKED[number % 4].format(FACTS[number % 8][0])} {number}"), Message("assistant", "Yes.")),
        )
        for number in range(300)
    ]


@pytest.fixture
def inputs(shelf: Path, put: Callable, talks: list[Conversation]) -> dict[str, Path]:
    return {"policy": shelf / "base", "prompts.open": put("talks", talks)}


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "open.parquet").read_bytes()).hexdigest()


def machine(batch: int = 64, processes: int = 1) -> Machine:
    return Machine(device="cpu", threads=1, eval_batch_size=batch, processes=processes)


def test_the_file_is_the_same_to_the_byte_in_any_batch_and_order_of_rows(
    run_stage: Run, inputs: dict[str, Path], put: Callable, talks: list[Conversation]
):
    few = {**params(), "sets": [{**SET, "max_rows": 40}, {**SET, "name": "greedy", "max_rows": 40, "temperature": 0.0, "num_answers": 1}]}
    asked = {**inputs, "prompts.greedy": inputs["prompts.open"]}
    found = {}
    for batch in (1, 7, 64):
        out, counts = run_stage("answers", f"in-{batch}", few, asked, machine(batch))
        found[batch] = [(out / f"{name}.parquet").read_bytes() for name in ("open", "greedy")]
    assert found[1] == found[7] == found[64]
    assert counts["sets"]["open"]["answers"] == 80 and counts["sets"]["greedy"]["answers"] == 40
    assert counts["dropped"] == {"open": {}, "greedy": {}}
    shuffled = random.Random(1).sample(talks, len(talks))
    there = put("shuffled", shuffled)
    out, _ = run_stage("answers", "shuffled-rows", few, {**asked, "prompts.open": there, "prompts.greedy": there}, machine(7))
    assert [(out / f"{name}.parquet").read_bytes() for name in ("open", "greedy")] == found[1]


def test_a_row_says_what_was_drawn_and_of_what(run_stage: Run, inputs: dict[str, Path], talks: list[Conversation]):
    out, counts = run_stage("answers", "answers", params(max_rows=20), inputs, machine())
    rows = list(samples.read(out / "open.parquet"))
    assert [row.number for row in rows] == [0, 1] * 20 and len({row.prompt_id for row in rows}) == 20
    assert {row.prompt_id for row in rows} <= {talk.id for talk in talks}
    assert len({row.seed for row in rows}) == 40
    tokenizer = models.load_tokenizer(policy.read(inputs["policy"]))
    for row in rows:
        assert row.tokens == len(row.token_ids) <= 8 and (row.ended or row.tokens == 8) and row.logprob < 0
        assert row.answer == tokenizer.decode(row.token_ids, skip_special_tokens=False)
    again = sum(tokenizer(row.answer, add_special_tokens=False)["input_ids"] != row.token_ids for row in rows)
    assert counts["sets"]["open"]["retokenised_differently"] == again


def test_prompts_are_never_cut_and_those_that_do_not_fit_are_counted(run_stage: Run, inputs: dict[str, Path], put: Callable):
    rows = [
        Question("long", "made", (Message("user", "Why? " * 100),), ("a", "b"), 0),
        Question("control", "made", (Message("user", "What is <|eot_id|>?"),), ("a", "b"), 0),
        Question("fits", "made", (Message("user", "What is it?"),), ("a", "b"), 0),
    ]
    asked = {**inputs, "prompts.open": put("questions", rows)}
    out, counts = run_stage("answers", "answers", params(), asked, machine())
    assert counts["dropped"] == {"open": {"too_long": 1, "control_token_in_text": 1}}
    assert {row.prompt_id for row in samples.read(out / "open.parquet")} == {"fits"}
    asked["prompts.open"] = put("too-long", rows[:1])
    with pytest.raises(UserError, match=r"none of the 1 prompts of 'open' can be answered: a prompt with 8 new tokens must fit 256"):
        run_stage("answers", "none", params(), asked, machine())


def test_a_system_prompt_is_said_where_there_is_none(run_stage: Run, inputs: dict[str, Path], put: Callable, monkeypatch):
    own = (Message("system", "Be brief."), Message("user", "What is it?"))
    rows = [Question("own", "made", own, ("a", "b"), 0), Question("none", "made", own[1:], ("a", "b"), 0)]
    seen: list[tuple[Message, ...]] = []
    real = chat.encode_prompts
    monkeypatch.setattr(chat, "encode_prompts", lambda tokenizer, prompts: seen.extend(prompts) or real(tokenizer, prompts))
    run_stage("answers", "answers", params(system_prompt="Be kind."), {**inputs, "prompts.open": put("questions", rows)}, machine())
    assert sorted(prompt[0].content for prompt in seen) == ["Be brief.", "Be kind."]
    assert all(prompt[1:] == prompt_of(rows[0])[1:] for prompt in seen)


def finish(folder: Path) -> None:
    """Write what says that a folder is whole."""
    files = store.result_files(folder)
    plain = {
        "status": "done",
        "counts": {},
        "digests": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "sizes": {str(path.relative_to(folder)): path.stat().st_size for path in files},
    }
    store.write_json(folder / "done.json", {**plain, "seal": damage.seal(plain)})


def prepared(folder: Path, given: dict, inputs: dict[str, Path], row: Machine) -> Path:
    """Write a stage's folder as a launcher leaves it, with finished inputs; returns the job's file."""
    folder.mkdir()
    for path in inputs.values():
        name = "base" if (path / "policy.json").exists() else "source.open"
        (path / "stage.json").write_text(json.dumps(staged.described(name, {}, {})))
        finish(path)
    read = {name: {"stage": path.name} for name, path in inputs.items()}
    (folder / "stage.json").write_text(json.dumps(staged.described("answers.base", given, read)))
    store.write_json(folder / "job.json", worker.Job(folder=folder, machine=row).model_dump(mode="json"))
    return folder / "job.json"


def started(job: Path, processes: int, node: int = 0) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["SLURMD_NODENAME"] = f"n{node}"
    command = [sys.executable, "-P", "-m", "rounds.train.launch.apart", str(job), str(processes), str(node)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def ended_all(process: subprocess.Popen) -> None:
    """Kill what a test started, and all that this started."""
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    process.wait()


def finished_blocks(folder: Path) -> int:
    return len(list((folder / "cache" / "blocks").glob("*.parquet")))


def test_two_processes_write_the_same_and_a_lost_one_costs_its_block(run_stage: Run, inputs: dict[str, Path], shelf: Path):
    alone, _ = run_stage("answers", "alone", params(), inputs, machine(7))
    job = prepared(shelf / "two", params(), inputs, machine(16, processes=2))
    process = started(job, 2)
    try:
        deadline = time.monotonic() + 300
        while not (lost := _helper_at_work(process, shelf / "two")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if lost:
            os.kill(lost, signal.SIGKILL)
        assert process.wait(300) == 0, (shelf / "two" / "log.txt").read_text()[-3000:]
    finally:
        if process.poll() is None:
            ended_all(process)
    assert lost, "the second process never had a block: the test says nothing"
    assert digest(shelf / "two") == digest(alone)
    record = store.done(shelf / "two")
    assert record and record.counts["sets"]["open"]["answers"] == 600
    assert not (shelf / "two" / "failed.json").exists() and not (shelf / "two" / "cache").exists()


@pytest.mark.slow
def test_two_nodes_of_two_processes_write_the_same_and_a_lost_node_costs_its_blocks(run_stage: Run, inputs: dict[str, Path], shelf: Path):
    """Nodes by name alone, as the job script starts them. What a lost node was at is taken when its marks are old, after two minutes."""
    alone, _ = run_stage("answers", "alone", params(), inputs, machine(7))
    job = prepared(shelf / "nodes", params(), inputs, machine(8, processes=2))
    agents = [started(job, 2, node) for node in (0, 1)]
    blocks = shelf / "nodes" / "cache" / "blocks"
    try:
        deadline = time.monotonic() + 400
        while "n1" not in (marked := [store.read_fields(mark).get("node") for mark in blocks.glob("*.taken")]):
            assert time.monotonic() < deadline and agents[0].poll() is None, marked
            time.sleep(0.01)
        ended_all(agents[1])
        assert agents[0].wait(400) == 0, (shelf / "nodes" / "log.txt").read_text()[-3000:]
    finally:
        for each in agents:
            if each.poll() is None:
                ended_all(each)
    assert digest(shelf / "nodes") == digest(alone)


def _helper_at_work(process: subprocess.Popen, folder: Path) -> int | None:
    """Return the process that is not rank 0 and has marked a block."""
    if (process.poll() is not None) or not (folder / "holder.json").exists():
        return None
    first = store.read_fields(folder / "holder.json").get("pid")
    for mark in (folder / "cache" / "blocks").glob("*.taken"):
        pid = store.read_fields(mark).get("pid")
        if isinstance(pid, int) and pid != first:
            return pid
    return None


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_file(run_stage: Run, inputs: dict[str, Path], shelf: Path):
    alone, _ = run_stage("answers", "alone", params(), inputs, machine(7))
    job = prepared(shelf / "killed", params(), inputs, machine(16))
    for kept in (0, 1, 2):  # killed while it is at the block behind so many
        process = started(job, 1)
        deadline = time.monotonic() + 300
        while finished_blocks(shelf / "killed") < kept or not list((shelf / "killed" / "cache" / "blocks").glob("*.taken")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        time.sleep(random.Random(kept).uniform(0, 0.3))
        ended_all(process)
        if store.done(shelf / "killed"):
            assert kept == 2, "only behind the last block may it have ended before it was killed"
        else:
            assert finished_blocks(shelf / "killed") >= kept
    worker.run(worker.Job(folder=shelf / "killed", machine=machine(64)))
    assert digest(shelf / "killed") == digest(alone)


def test_asked_to_stop_it_ends_after_its_block_and_writes_no_block_twice(run_stage: Run, inputs: dict[str, Path], shelf: Path, monkeypatch):
    alone, _ = run_stage("answers", "alone", params(), inputs, machine(7))
    asked = []
    real = answers._written

    def written(*given):
        asked.append(1)
        (shelf / "stopped" / "stop").touch()
        return real(*given)

    monkeypatch.setattr(answers, "_written", written)
    with pytest.raises(ranks.Stopped, match="1 of 3 blocks"):
        run_stage("answers", "stopped", params(), inputs, machine(7))
    (shelf / "stopped" / "stop").unlink()
    monkeypatch.setattr(answers, "_written", lambda *given: asked.append(1) or real(*given))
    out, _ = run_stage("answers", "stopped", params(), inputs, machine(64))
    assert len(asked) == 3 and digest(out) == digest(alone)


def test_blocks_are_cut_by_prompts_alone(run_stage: Run, inputs: dict[str, Path], shelf: Path):
    """Another batch, as another cluster file says, goes on with the blocks that are there."""
    run_stage("answers", "first", params(), inputs, machine(7))
    files = sorted((shelf / "first" / "cache" / "blocks").glob("*.parquet"))
    assert [path.name for path in files] == [f"open.{n:06}.parquet" for n in range(3)]
    assert [pq.read_metadata(path).num_rows for path in files] == [256, 256, 88]
    order = [row.prompt_id for row in samples.read(shelf / "first" / "open.parquet")][::2]
    assert order == sorted(order, key=lambda name: records.stable_hash("evaluate", name))
    held = [path.stat().st_mtime_ns for path in files]
    run_stage("answers", "first", params(), inputs, machine(64))
    assert [path.stat().st_mtime_ns for path in files] == held, "nothing was written again"
