"""Who computes a stage: one process at a time, told to the others, and freed by its death."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from rounds.data_prep.errors import UserError
from rounds.train.engine import records
from rounds.train.engine.store import read_fields, write_json

logger = logging.getLogger("rounds")


@contextlib.contextmanager
def claim(stage_folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a stage against other runs. The operating system frees the claim when the holder dies, however it dies.

    Raises `UserError` naming the holder when `wait` is off and somebody holds it.
    """
    lock = FileLock(stage_folder / records.LOCK)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise UserError(f"{stage_folder.name} is being computed by {holder(stage_folder)}") from None
    try:
        write_json(stage_folder / records.HOLDER, {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
        yield
    finally:
        (stage_folder / records.HOLDER).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def turn(root: Path, seconds: float = 600) -> Iterator[None]:
    """Let one command at a time submit or cancel jobs for this store: two at once would each submit what neither sees queued.

    Raises `UserError` when another is not through after so many seconds.
    """
    lock = FileLock(root / "submitting.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another command submits or cancels jobs of %s; waiting for it", root)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise UserError(
                f"another command has been submitting or cancelling jobs of {root} for {seconds / 60:.0f} minutes; "
                f"try again when it has ended, or, if none runs any more, remove {root / 'submitting.lock'}"
            ) from None
    try:
        yield
    finally:
        lock.release()


def is_held(stage_folder: Path) -> bool:
    """Tell whether a living process holds the stage."""
    if not (stage_folder / records.LOCK).exists():
        return False
    lock = FileLock(stage_folder / records.LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # somebody else's store, which we may only read
        return (stage_folder / records.HOLDER).exists()
    lock.release()
    return False


def holder(stage_folder: Path) -> str:
    """Say who holds, or last held, a stage."""
    record = read_fields(stage_folder / records.HOLDER)
    process, host, since = record.get("pid"), record.get("host"), record.get("since")
    if not isinstance(process, int) or not isinstance(host, str) or not isinstance(since, int | float):
        return "another run"
    with contextlib.suppress(OverflowError, ValueError, OSError):  # a time that no clock shows
        return f"process {process} on {host}, since {time.strftime('%H:%M:%S', time.localtime(since))}"
    return f"process {process} on {host}"


def holding_process(stage_folder: Path) -> int | None:
    """Return the process that says it holds a stage; None where nobody says so, or a process of this machine that is gone."""
    record = read_fields(stage_folder / records.HOLDER)
    process = record.get("pid")
    if not isinstance(process, int) or isinstance(process, bool) or process <= 0:
        return None
    here = record.get("host") == socket.gethostname()
    return process if not here or psutil.pid_exists(process) else None
