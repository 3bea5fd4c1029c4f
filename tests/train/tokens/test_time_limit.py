"""Code that does not end is ended, in any thread; and what ended in time leaves nothing behind that a later step would meet."""

import subprocess
import sys
import threading
import time

import pytest

from rounds.train.tokens.time_limit import OutOfTimeError, time_limit

TRACED = """
import sys, time
from rounds.train.tokens.time_limit import OutOfTimeError, time_limit

def step():
    return 1

with time_limit(60):
    step()
try:
    with time_limit(0.05):
        while True:
            step()
except OutOfTimeError:
    pass
sys.settrace(lambda *_: None)
print(step())
"""


def spin(seconds: float) -> None:
    """Work in Python for so long, at most."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_what_takes_too_long_ends_in_whatever_thread_it_runs():
    found: list[str] = []

    def work() -> None:
        try:
            with time_limit(0.05):
                spin(60)
        except OutOfTimeError:
            found.append("ended")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert found == ["ended"]
    with pytest.raises(OutOfTimeError), time_limit(0.05):
        spin(60)


def test_who_restarts_has_the_whole_time_again():
    with time_limit(0.5) as restart:
        for _ in range(4):
            spin(0.2)
            restart()


def test_an_exception_that_comes_with_the_last_step_arrives_there_or_nowhere():
    for _ in range(200):
        try:
            with time_limit(0.001):
                spin(0.001)
        except OutOfTimeError:
            pass
        spin(0.0005)


def test_a_debugger_may_follow_afterwards():
    """CPython 3.11 stood still at the first function that was traced: a thread's exception was taken back that it never had."""
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n", done.stderr
