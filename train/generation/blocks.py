"""Work in blocks that several processes share by files alone: a process that is lost costs the block that it was at.

In: the names of the blocks, and what makes one. Out: a file for each, written whole. Whoever is free takes the next block that nobody
has; a mark beside it says so, and is kept fresh while its holder lives. One whose holder is gone is taken by another. Should two make
the same block, both make the same file.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.whole import whole
from rounds.train.engine import ranks

_FRESH_SECONDS = 10
_LAG_SECONDS = 120
"""A mark this old is nobody's: twice what NFS keeps a file's state for by default (acregmax, 60 s)."""
_POLL_SECONDS = 0.5


def make(
    folder: Path,
    names: Sequence[str],
    write: Callable[[str], pa.Table],
    stop: Callable[[], bool],
    progress: Callable[[int], None],
) -> None:
    """Make all blocks that are not there yet, with whoever else does; rank 0 returns when all are there, others when none is free.

    Raises `ranks.Stopped` between two blocks when `stop` says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _Marks(folder) as marks:
        while left := [name for name in names if not file_of(folder, name).is_file()]:
            progress(len(names) - len(left))
            if stop():
                raise ranks.Stopped(f"stopped when asked, with {len(names) - len(left)} of {len(names)} blocks written")
            mine = next((name for name in left if marks.take(name)), None)
            if mine is not None:
                if not file_of(folder, mine).is_file():  # by another, since the look above
                    with whole(file_of(folder, mine), many=True) as partial:
                        pq.write_table(write(mine), partial, compression="zstd")
                marks.leave(mine)
            elif ranks.rank() > 0:
                return
            else:
                time.sleep(_POLL_SECONDS)
    progress(len(names))


def file_of(folder: Path, name: str) -> Path:
    """Return the file of a block."""
    return folder / f"{name}.parquet"


class _Marks:
    """Which blocks are being made, and by whom. A thread keeps this process's own marks fresh."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.held, self.ended = folder, set[Path](), threading.Event()
        self.own = folder / f"{ranks.node()}-{os.getpid()}.alive"
        self.thread = threading.Thread(target=self._keep_fresh, daemon=True)

    def __enter__(self) -> "_Marks":
        self.own.touch()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()
        for path in (*self.held, self.own):
            path.unlink(missing_ok=True)

    def take(self, name: str) -> bool:
        """Mark a block as one's own, unless somebody who lives has it."""
        mark = self.folder / f"{name}.taken"
        if mark.exists() and self._lives(mark):
            return False
        mark.unlink(missing_ok=True)
        try:
            with mark.open("x", encoding="utf-8") as file:
                json.dump({"node": ranks.node(), "pid": os.getpid()}, file)
        except FileExistsError:
            return False
        self.held = self.held | {mark}
        return True

    def leave(self, name: str) -> None:
        """Take the mark away again."""
        mark = self.folder / f"{name}.taken"
        self.held = self.held - {mark}
        mark.unlink(missing_ok=True)

    def _lives(self, mark: Path) -> bool:
        """Tell whether the process that holds a mark is there: by its number on this node, else by the mark's age on the file
        server's own clock."""
        try:
            held, touched = json.loads(mark.read_text(encoding="utf-8")), mark.stat().st_mtime
        except FileNotFoundError:
            return False
        except ValueError:  # not written yet
            held, touched = {}, mark.stat().st_mtime if mark.exists() else 0.0
        if held.get("node") == ranks.node() and isinstance(held.get("pid"), int):
            return held["pid"] != os.getpid() and _runs(held["pid"])
        self.own.touch()
        return self.own.stat().st_mtime - touched < _LAG_SECONDS

    def _keep_fresh(self) -> None:
        while not self.ended.wait(_FRESH_SECONDS):
            for path in self.held:
                with contextlib.suppress(FileNotFoundError):  # left just now
                    os.utime(path)


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
