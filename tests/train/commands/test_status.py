"""`rounds status --watch` and `rounds logs -f` beside a run at work: they wait for what has not begun, and end with it.

Covers: train/commands/logs.
"""

import os
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "mini_slurm.yaml"


def test_watching_and_following_begin_before_a_run_and_end_with_it(tmp_path):
    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "rounds.train.cli",
            *arguments,
            "--store",
            str(tmp_path),
            "--set",
            "rounds.first.num_train_epochs=1",
        ]
        environment = {**os.environ, "COLUMNS": "160"}
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)

    watching, following = start("status", str(RECIPE), "--watch"), start("logs", str(RECIPE), "dpo.first", "-f")
    running = start("run", str(RECIPE))
    shown = {name: process.communicate(timeout=300)[0]
             for name, process in (("run", running), ("logs", following), ("status", watching))}  # fmt: skip
    assert (running.returncode, following.returncode, watching.returncode) == (0, 0, 0), shown
    assert "dpo.first has not begun; waiting for it" in shown["logs"]
    assert shown["logs"].rstrip().splitlines()[-1].startswith("-- dpo.first: done")
    assert len(shown["logs"].splitlines()) > 3
    last = shown["status"].rpartition("stage ")[2]
    assert "report" in last and "to do" not in last and "15 steps" in last
