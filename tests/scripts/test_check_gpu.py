"""The prepared check of a card, in small on the CPU: it finds what it should, in the form that it has on a card, and hides nothing."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_gpu"
HERE_NEVER = {"engines.compile", "engines.nccl"}
"""Checks of what no CPU, or no recipe, has."""


def check(out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Run it in small; returns the process and what it wrote."""
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    return done, json.loads((out / "results.json").read_text())


def test_in_small_every_check_runs_and_is_right(tmp_path: Path):
    done, results = check(tmp_path / "out")
    failed = [(name, row) for name, rows in results["checks"].items() for row in rows if row["status"] == "failed"]
    assert (done.returncode, failed) == (0, []), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["check", "what", "value", "bound", "status", "note"]
    rows = sum(map(len, results["checks"].values()))
    assert lines[rows + 1] == "" and "nothing of a card" in lines[-1]
    whole = {name for name, rows in results["checks"].items() if all(row["status"] == "n/a" for row in rows)}
    assert whole <= HERE_NEVER | ({"engines.qlora"} if "bitsandbytes" not in results["versions"] else set())
    assert results["counts"]["ok"] > 80


def test_a_check_that_is_ended_hides_no_other_and_fails_the_whole(tmp_path: Path):
    done, results = check(tmp_path / "out", "--only", "right.dpo", "card", "--limit", "right.dpo=0.2")
    assert done.returncode == 1
    assert [row["status"] for row in results["checks"]["right.dpo"]][-1] == "failed"
    assert "ended at its limit of 0.2 s" in done.stdout
    assert {row["status"] for row in results["checks"]["card"]} == {"ok", "n/a"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_run_leaves_no_process_and_shows_what_it_found(tmp_path: Path, number: signal.Signals):
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(out), "--only", "card", "right.dpo", "right.sft"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr and run.stderr.readline().startswith("card")
        started = psutil.Process(run.pid).children(recursive=True)
        while not started:
            assert run.poll() is None, run.communicate()
            started = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        printed = run.communicate()[0]
    assert psutil.wait_procs(started, timeout=20)[1] == []
    results = json.loads((out / "results.json").read_text())
    assert {row["status"] for row in results["checks"]["card"]} == {"ok", "n/a"}
    if number is signal.SIGKILL:
        return
    assert run.returncode == 128 + number
    assert f"{number.name} ended the run" in printed and "nothing of a card" in printed
    assert [row["status"] for row in results["checks"]["right.sft"]] == ["n/a"]


def test_a_check_without_time_is_not_begun(tmp_path: Path):
    done, results = check(tmp_path / "out", "--only", "card", "--minutes", "0")
    assert (done.returncode, results["counts"]) == (0, {"ok": 0, "failed": 0, "n/a": 1})
    assert "no time left of 0 minutes" in done.stdout
