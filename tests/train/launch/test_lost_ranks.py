"""One of two ranks is lost in the middle of training: one message names it, its node and its log, and no process stays.

The operating system ends it: by SIGKILL, as its out-of-memory killer does, or by refusing it memory.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rounds.train.engine import store

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.xdist_group("ranks")


def ranks_of(folder: Path) -> dict[str, psutil.Process]:
    """The workers of a store, by rank; one that ends while we look has none."""
    found = {}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if "rounds.train.engine.worker" in command and command[-1].startswith(str(folder)):
                found[process.environ().get("RANK", "")] = process
        except psutil.Error:
            continue
    return found


def refuse_memory(process: psutil.Process) -> None:
    used = process.memory_info().vms
    process.rlimit(resource.RLIMIT_AS, (used, used))


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        (lambda process: process.send_signal(signal.SIGKILL), "was ended by signal 9 (killed; out of memory, perhaps)"),
        pytest.param(refuse_memory, "out of memory: lower micro_batch_size", marks=pytest.mark.slow),
    ],
    ids=["killed", "out of memory"],
)
def test_a_lost_rank_is_named_and_leaves_no_process(tmp_path: Path, lose, says: str):
    cluster = tmp_path / "two.yaml"
    cluster.write_text("train: {device: cpu, processes: 2, micro_batch_size: 1, threads: 1}")
    # One long row a batch: memory comes from the system at every step, and is not at hand from the step before.
    command = [sys.executable, "-m", "rounds.train.cli", "run", str(ROOT / "tests/train/mini.yaml"), "--cluster", str(cluster),
               "--store", str(tmp_path / "store"), "--set", "evaluate=null", "--set", "gate=null", "--set", "sft.num_train_epochs=90",
               "--set", "sft.max_length=2048", "--set", "base.max_position_embeddings=2048"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("w") as said:
        launcher = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
    try:
        until = time.monotonic() + 240
        while not any((store.read_json(file) or {}).get("step", 0) >= 3 for file in tmp_path.glob("store/sft-*/progress.json")):
            assert launcher.poll() is None and time.monotonic() < until, (tmp_path / "said.txt").read_text()
            time.sleep(0.2)
        ranks = ranks_of(tmp_path)
        assert set(ranks) >= {"0", "1"}
        lose(ranks["1"])
        assert launcher.wait(120) == 1
    finally:
        launcher.terminate()
        launcher.wait(30)
    told = " ".join((tmp_path / "said.txt").read_text().split())
    assert "rank 1 on " in told and says in told and "logs/rank-1.txt" in told
    _, alive = psutil.wait_procs([*ranks.values(), *ranks_of(tmp_path).values()], timeout=10)
    assert not alive
