"""Extensions that are compiled where they are first needed (DeepSpeed's operators): a compilation that was killed holds up no other.

torch lets one process compile while the rest wait for a file to go (`torch.utils.file_baton`). A process that is killed leaves the
file, and every later one on that machine waits for ever, without a word.
"""

import os
from pathlib import Path
from typing import Any

from filelock import FileLock


class Baton:
    """Stands for `torch.utils.file_baton.FileBaton`, by a lock of the system's, which ends with the process that holds it.

    All compile, one after the other: what the first made is up to date for the next, and what a killed one left is made again.
    """

    def __init__(self, lock_file_path: str, *_: Any, **__: Any) -> None:
        self.lock = FileLock(f"{lock_file_path}.held")

    def try_acquire(self) -> bool:
        """Wait for one's turn."""
        self.lock.acquire()
        return True

    def release(self) -> None:
        """Let the next compile."""
        self.lock.release()


def guard() -> None:
    """Hold compilations of this process by `Baton`, in a folder that no other program's lock is left in.

    TORCH_EXTENSIONS_DIR, where it is set, is kept: a SLURM job's is on the node's own disk and goes with the job.
    """
    import torch.utils.cpp_extension

    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(caches / "rounds" / "torch_extensions"))
    setattr(torch.utils.cpp_extension, "FileBaton", Baton)  # noqa: B010 - a type checker would have it a FileBaton
