"""A process of its own for each check, with a limit: what fails, hangs or breaks a card's context there hides nothing else.

On a CPU the process is a fork of one that has imported the libraries, which takes longer than most checks in small; on a card it is a
fresh interpreter, since CUDA does not survive a fork.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu.finding import Finding, NotHere, append, not_here, read

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ended(BaseException):
    """This process was asked to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


_asked: list[int] = []
"""Signals that came. One that comes while Python runs what is to be run after a fork is raised there, and ignored."""


def raise_when_asked_to_end() -> None:
    """Let the signals that ask a process to end raise `Ended`, so that what was found is still shown."""

    def ended(number: int, frame: object) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)  # the table is printed once
        _asked.append(number)
        raise Ended(number)

    for each in ENDING:
        signal.signal(each, ended)


_TOO_OLD = (ImportError, NotHere)


def run_alone(work: Callable[..., None], args: tuple, device: str, limit: float, leads: bool = True) -> int:
    """Run a function in a process of its own; returns its exit code, negative for a signal. Ended at the limit, and where it leads,
    with all that it has started."""
    context: Any = multiprocessing.get_context("fork" if device == "cpu" else "spawn")
    process = context.Process(target=_led if leads else work, args=(work, args) if leads else args)
    process.start()
    try:
        if _asked:
            raise Ended(_asked[0])
        process.join(limit)
    finally:  # also where this process is asked to end: nothing on a card outlives it
        late = process.is_alive()
        if late:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if leads else process.kill()
            process.join()
    return -signal.SIGKILL if late else process.exitcode


def _led(work: Callable[..., None], args: tuple) -> None:
    with contextlib.suppress(PermissionError):
        os.setpgrp()  # so that all it starts can be ended with it
    for each in ENDING:  # a fork has its parent's handlers
        signal.signal(each, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    work(*args)


def _end_with(parent: int) -> None:
    """End this process and all that it has started when its parent is gone, killed perhaps."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run_check(name: str, function: str, device: str, limit: float, folder: Path) -> list[Finding]:
    """Run one check and return its findings, those before a failure too, and the failure as one of them."""
    path, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    path.unlink(missing_ok=True)
    began = time.monotonic()
    ended = run_alone(_inside, (function, device, limit, str(path), str(log)), device, limit)
    found = read(path)
    if ended == -signal.SIGKILL and time.monotonic() - began >= limit:
        _unlock(limit)
        found.append(Finding("the check", status="failed", reason=f"ended at its limit of {limit:.1f} s; see {log.name}"))
    elif ended:
        found.append(Finding("the check", status="failed", reason=f"its process ended with {ended}; see {log.name}"))
    elif not found:
        found.append(Finding("the check", status="failed", reason=f"it found nothing; see {log.name}"))
    return found


def _unlock(seconds: float) -> None:
    """Remove the locks that a compilation has left which was ended with its check: torch would wait for them for ever, in every process
    to come. Only locks that are no older than the check."""
    default = Path("~/.cache/torch_extensions").expanduser()
    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR", default)).glob("**/lock"):
        if time.time() - lock.stat().st_mtime <= seconds + 1:
            lock.unlink(missing_ok=True)


def _inside(function: str, device: str, limit: float, path: str, log: str) -> None:
    with Path(log).open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    module, _, rest = function.partition(":")
    name, *args = rest.split()
    try:
        check: Callable[..., Any] = getattr(importlib.import_module(module), name)
        # Room to end by itself, with what it has measured, before it is ended.
        for finding in check(*args, device, 0.8 * limit):
            append(Path(path), finding)
    except _TOO_OLD as error:
        traceback.print_exc()
        append(Path(path), not_here("the check", str(error)))
    except BaseException as error:
        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        append(Path(path), Finding("the check", status="failed", reason=said))
    sys.stdout.flush()
