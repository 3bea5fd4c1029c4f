"""Ctrl-C at any moment: one line and exit code 130, also while libraries are imported and while the program ends.

The command line imports this first. What a program leaves behind when it ends so is what `kill -9` leaves: nothing half written. Only
while stages run is Ctrl-C an exception, so that they are ended before the shell has its prompt back.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXIT_CODE = 130
LINE = "stopped; the same command goes on from here"
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides
_PROGRAMS = ("rounds", "cli")


def _end(*_: Any) -> None:
    text = f"{_SHOW_CURSOR}\n{LINE}\n" if os.isatty(2) else f"{LINE}\n"  # a terminal has shown ^C
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    os._exit(EXIT_CODE)


def _interrupt(*_: Any) -> None:
    signal.signal(signal.SIGINT, _end)
    raise KeyboardInterrupt


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let the first Ctrl-C inside be a `KeyboardInterrupt`; a second ends the program at once. Does nothing in other programs."""
    ours = signal.getsignal(signal.SIGINT) is _end
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Let processes that are started inside, and theirs, never hear of Ctrl-C: whoever started them ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if Path(sys.argv[0]).stem in _PROGRAMS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
