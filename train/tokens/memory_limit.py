"""An end to code that takes more and more memory, before the system ends the process for it.

In: bytes. Out: a block in which what the process takes beyond what it has raises `MemoryError`.
"""

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has none
    resource = None

_lock, _inside, _before = threading.Lock(), 0, (0, 0)


@contextlib.contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Let the process take so many bytes more than it holds now; what asks for others meets a `MemoryError`.

    The limit is the system's on private memory (`RLIMIT_DATA`), so it holds for all threads; of blocks that overlap in several threads the
    one that begins last sets it. Where the system has no such limit (outside Linux), nothing is limited.
    """
    global _inside, _before
    if resource is None or not sys.platform.startswith("linux"):
        yield
        return
    with _lock:
        if not _inside:
            _before = resource.getrlimit(resource.RLIMIT_DATA)
        _inside += 1
        soft, hard = _before
        limits = [each for each in (soft, hard, _held() + more) if each != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                resource.setrlimit(resource.RLIMIT_DATA, _before)


def _held() -> int:
    """Return the bytes of private memory that the process has asked for."""
    found = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    assert found
    return int(found.group(1)) << 10
