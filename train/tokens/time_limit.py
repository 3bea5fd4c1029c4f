"""An end to Python code that would not end by itself, in whatever thread it runs.

In: seconds. Out: a block that raises `OutOfTimeError` when they have passed since it began, or since `restart` was called.
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator

_STEPS = 1000
"""Of Python code, within which an exception that was set arrives: it takes one."""


class OutOfTimeError(Exception):
    """A block took longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[Callable[[], None]]:
    """Raise `OutOfTimeError` in the block when it takes too long; yields what gives it the whole time again.

    The exception is set by a thread that watches, as CPython allows (`PyThreadState_SetAsyncExc`), and arrives at the next step of
    Python code: a signal would arrive in the main thread only, and rows are rendered in others.
    """
    thread, lock, ended, fired = threading.get_ident(), threading.Lock(), threading.Event(), threading.Event()
    begun = [time.monotonic()]

    def restart() -> None:
        begun[0] = time.monotonic()

    def watch() -> None:
        while not ended.wait(max(0.01, begun[0] + seconds - time.monotonic())):
            with lock:
                if not ended.is_set() and time.monotonic() >= begun[0] + seconds:
                    fired.set()
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(OutOfTimeError))
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield restart
    finally:
        # One that was set after the last step of the block arrives here, and not later, anywhere. It is not taken back: CPython then goes
        # on looking for it at every step and, up to 3.11 where somebody traces (a debugger, hypothesis), does nothing else any more.
        with contextlib.suppress(OutOfTimeError):
            with lock:
                ended.set()
            for _ in range(_STEPS if fired.is_set() else 0):
                pass
