"""Ctrl-C, as a terminal sends it to all processes of a command: one line, exit code 130, and nobody is left to write after it."""

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rounds.train.launch.interrupts import LINE
from tests.train.conftest import MINI, MINI_CLUSTER

WAIT_SECONDS = 120
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def interrupted(command: list[str], when: Callable[[str, int], bool]) -> tuple[int, str]:
    """Run a command in a terminal of its own, press Ctrl-C when something holds of its output and process; returns the exit code
    and what was on the screen from then on, till nobody had the terminal any more."""
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs the tests may be in the background, deaf to it
        os.execvp(command[0], command)
    began, screen, pressed = time.monotonic(), "", None
    while time.monotonic() - began < WAIT_SECONDS:
        ready, _, _ = select.select([terminal], [], [], 0.02)
        try:
            screen += os.read(terminal, 65536).decode(errors="replace") if ready else ""
        except OSError:  # all who had it open have ended
            break
        if pressed is None and when(screen, process):
            pressed = len(screen)
            os.write(terminal, b"\x03")
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    assert pressed is not None, screen
    return os.waitstatus_to_exitcode(status), _CONTROL.sub("", screen[pressed:])


def imported(part: str) -> Callable[[str, int], bool]:
    """Tell whether a file of a library is open or mapped in a process or one that it started."""

    def look(_: str, pid: int) -> bool:
        try:
            every = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
            return any(part in Path(f"/proc/{each}/maps").read_text() for each in every)
        except (psutil.Error, OSError):
            return False

    return look


MOMENTS: dict[str, tuple[list[str], Callable[[str, int], bool]]] = {
    "while the command line is imported": (["plan", str(MINI)], imported("_pydantic_core")),
    "while torch is imported for the stages": (["run", str(MINI), "--cluster", str(MINI_CLUSTER)], imported("libtorch_cpu")),
    "while a stage is at work": (["run", str(MINI), "--cluster", str(MINI_CLUSTER)], lambda screen, _: " 240 records" in screen),
}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at what is imported by /proc")
@pytest.mark.parametrize(("arguments", "when"), MOMENTS.values(), ids=MOMENTS.keys())
def test_ctrl_c_is_one_line_and_the_last(tmp_path: Path, arguments: list[str], when: Callable[[str, int], bool]):
    command = [sys.executable, "-m", "rounds.train.cli", *arguments, "--store", str(tmp_path / "store")]
    code, screen = interrupted(command, when)
    assert code == 130 and "Traceback" not in screen, screen
    assert [line.strip() for line in screen.splitlines() if line.strip()][-1] == LINE and screen.count(LINE) == 1, screen
