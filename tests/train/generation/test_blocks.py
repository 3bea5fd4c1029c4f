"""Blocks are made once each, by whoever is free; a process that is lost costs its block, whenever it is lost."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rounds.train.engine import ranks
from rounds.train.generation import blocks

NAMES = [f"set.{number:06}" for number in range(12)]


def never() -> bool:
    return False


def make(folder: Path, seconds: float = 0.0, rank: int = 0) -> None:
    """Make all blocks, and note each that was begun."""
    os.environ["RANK"] = str(rank)

    def write(name: str) -> pa.Table:
        with (folder / "begun").open("a") as file:
            file.write(f"{name}\n")
        time.sleep(seconds)
        return pa.table({"name": [name]})

    blocks.make(folder, NAMES, write, never, lambda done: None)


def made(folder: Path) -> list[str]:
    return [pq.read_table(blocks.file_of(folder, name))["name"][0].as_py() for name in NAMES]


def begun(folder: Path) -> list[str]:
    return (folder / "begun").read_text().split()


def test_several_processes_make_each_block_once(tmp_path: Path):
    others = [multiprocessing.get_context("fork").Process(target=make, args=(tmp_path, 0.2, rank)) for rank in (1, 2)]
    for each in others:
        each.start()
    make(tmp_path, 0.2)
    assert made(tmp_path) == NAMES
    for each in others:
        each.join()
        assert each.exitcode == 0
    assert sorted(begun(tmp_path)) == NAMES
    assert not [*tmp_path.glob("*.taken"), *tmp_path.glob("*.alive"), *tmp_path.glob("*.partial")]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_costs_its_block(tmp_path: Path, rank: int):
    lost = multiprocessing.get_context("fork").Process(target=make, args=(tmp_path, 0.3, rank))
    lost.start()
    while not (tmp_path / "begun").exists() or len(begun(tmp_path)) < 3:
        time.sleep(0.02)
    assert lost.pid
    os.kill(lost.pid, signal.SIGKILL)
    before = time.monotonic()
    make(tmp_path)  # before it is waited for: dead, and not yet buried
    lost.join()
    assert time.monotonic() - before < 20, "nobody waits for a mark to age whose holder was of this machine"
    assert made(tmp_path) == NAMES
    assert len(begun(tmp_path)) == 13, "one was begun twice"


def test_a_mark_of_another_node_holds_until_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mark = tmp_path / f"{NAMES[0]}.taken"
    mark.write_text(json.dumps({"node": "elsewhere", "pid": 1}))
    monkeypatch.setenv("RANK", "1")
    make(tmp_path, rank=1)
    assert sorted(begun(tmp_path)) == NAMES[1:], "no rank but 0 waits for it"
    os.utime(mark, (time.time() - 600, time.time() - 600))
    make(tmp_path)
    assert made(tmp_path) == NAMES and not mark.exists()


def test_asked_to_stop_it_ends_between_two_blocks_and_goes_on_later(tmp_path: Path):
    with pytest.raises(ranks.Stopped, match="3 of 12 blocks"):
        blocks.make(
            tmp_path,
            NAMES,
            lambda name: pa.table({"name": [name]}),
            lambda: len(list(tmp_path.glob("*.parquet"))) == 3,
            lambda done: None,
        )
    make(tmp_path)
    assert sorted(begun(tmp_path)) == NAMES[3:] and made(tmp_path) == NAMES
