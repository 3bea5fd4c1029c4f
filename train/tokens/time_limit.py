"""An end to Python code that would not end by itself, in whatever thread it runs.

In: seconds. Out: a block that raises `OutOfTimeError` when they have passed since it began, or since `restart` was called.
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator


class OutOfTimeError(Exception):
    """A block took longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[Callable[[], None]]:
    """Raise `OutOfTimeError` in the block when it takes too long; yields what gives it the whole time again.

    The exception is set by a thread that watches, as CPython allows (`PyThreadState_SetAsyncExc`), and arrives at the next step of
    Python code: a signal would arrive in the main thread only, and rows are rendered in others.
    """
    thread, lock, ended = threading.get_ident(), threading.Lock(), threading.Event()
    begun = [time.monotonic()]

    def restart() -> None:
        begun[0] = time.monotonic()

    def watch() -> None:
        while not ended.wait(max(0.01, begun[0] + seconds - time.monotonic())):
            with lock:
                if not ended.is_set() and time.monotonic() >= begun[0] + seconds:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(OutOfTimeError))
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield restart
    finally:
        with lock:
            ended.set()
        # One that was set after the last step of the block must not arrive later, anywhere.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)
