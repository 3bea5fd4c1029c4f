"""A stage that did not finish is explained by one message. What torchrun prints here was copied from a real run of it."""

import json
from pathlib import Path

import pytest

from rounds.train.engine import worker
from rounds.train.launch import failures

TORCHRUN = """
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_02:49:45
  host      : gpu-07
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 28019)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 28019
"""


def failed(folder: Path, **record: object) -> None:
    (folder / "failed.json").write_text(json.dumps({"user_error": False, "time": 1.0, **record}))


def test_a_killed_rank_is_the_cause_and_not_the_rank_that_lost_contact(tmp_path: Path):
    failed(tmp_path, message="rank 0 on gpu-06: RuntimeError: Connection reset by peer", lost_contact=True)
    told = failures.why("sft", tmp_path, 1, TORCHRUN)
    assert told.startswith("sft: rank 1 on gpu-07 (process 28019) was ended by signal 9 (killed; out of memory, perhaps)")
    assert str(tmp_path / "logs" / "rank-1.txt") in told
    assert json.loads((tmp_path / "failed.json").read_text())["message"] in told


def test_a_rank_that_could_speak_is_believed(tmp_path: Path):
    failed(tmp_path, message="rank 3 on gpu-07: ValueError: x", lost_contact=False, log="logs/rank-3.txt")
    assert failures.why("sft", tmp_path, 1, TORCHRUN) == (
        "sft failed: rank 3 on gpu-07: ValueError: x. The traceback is in logs/rank-3.txt."
    )


def test_a_port_that_is_taken_is_told(tmp_path: Path):
    assert "port" in failures.why("sft", tmp_path, 1, "DistNetworkError: ... EADDRINUSE ...")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")])
def test_running_out_of_memory_says_what_to_change(tmp_path: Path, error: Exception):
    from rounds.train.config.cluster import Machine

    worker._record_failure(worker.Job(folder=tmp_path, machine=Machine()), error)
    assert "lower micro_batch_size" in json.loads((tmp_path / "failed.json").read_text())["message"]


def test_the_first_cause_stays_and_lost_contact_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rounds.train.config.cluster import Machine

    def record(rank: int, error: Exception) -> str:
        monkeypatch.setenv("RANK", str(rank))
        worker._record_failure(worker.Job(folder=tmp_path, machine=Machine()), error)
        return json.loads((tmp_path / "failed.json").read_text())["message"]

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-07")
    assert record(0, RuntimeError("gloo: Connection reset by peer")).startswith("rank 0 on gpu-07")
    assert record(2, ValueError("bad row")) == "rank 2 on gpu-07: ValueError: bad row"
    assert record(1, ValueError("too late")) == "rank 2 on gpu-07: ValueError: bad row"
