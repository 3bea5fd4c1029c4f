"""More memory than a block may take is an error in it, and the limit goes with the block."""

import resource
import sys
import threading

import pytest

from rounds.train.tokens.memory_limit import memory_limit

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system has no limit on private memory")


def test_what_is_too_much_is_an_error_and_afterwards_there_is_no_limit():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit(1 << 28):
        assert len(b"a" * (1 << 26)) == 1 << 26
        with pytest.raises(MemoryError):
            b"a" * (1 << 33)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(b"a" * (1 << 29)) == 1 << 29


def test_blocks_that_overlap_in_threads_leave_no_limit_behind():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with memory_limit(1 << 28):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with memory_limit(1 << 28):
        thread.start()
        entered.wait()
    assert resource.getrlimit(resource.RLIMIT_DATA) != before
    leave.set()
    thread.join()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
