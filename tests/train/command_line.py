"""The command line, for tests: in this process, which has its imports behind it, or in a fresh interpreter, which can be killed.

Stages run in processes of their own either way, forked from one that has imported torch and TRL (`rounds.train.launch.local`).
In this process that one stays for the next run; a fresh interpreter starts its own, which costs 10 to 15 s of a core.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from typer.testing import CliRunner

from rounds.train import cli
from rounds.train.launch import local

WAIT_SECONDS = 300
CONNECTIONS = Path(__file__).with_name("connections")
"""Put on PYTHONPATH, it notes what Python processes connect to."""


def here(*arguments: str | Path, expect: int = 0, environment: Mapping[str, str] | None = None) -> str:
    """Run a command in this process, check its exit code, and return everything it printed."""
    multiprocessing.set_forkserver_preload(local._PRELOAD)  # a first run that needs no torch would start one without it
    kept = dict(os.environ)
    try:
        done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env=environment)
    finally:
        os.environ.clear()
        os.environ.update(kept)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == expect, done.output
    return done.output


def start(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a fresh interpreter, in the background."""
    command = [sys.executable, "-m", "rounds.train.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})})


def afresh(*arguments: str | Path, expect: int = 0, environment: Mapping[str, str] | None = None) -> str:
    """Run a command in a fresh interpreter, check its exit code, and return everything it printed."""
    process = start(*arguments, environment=environment)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == expect, output
    assert "Traceback" not in output
    return output
