"""What a file holds, as a digest: remembered by machine, size, times and inode, so that a large model is read once.

`digests.json` of the store is only a memory: one that is damaged, or lost, costs reading again.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.train.engine.graph import Asset
from rounds.train.engine.store import read_fields, write_json

_MEMORY = "digests.json"
_LONG_READ = 4 << 30  # bytes; some seconds, at the speed of a disk
_HEX = 64
_OF_THE_SYSTEM = {(), ("proc",), ("sys",), ("dev",)}
"""The root, and folders in it without an end or with other content at every look."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def asset(root: Path, path: Path, patterns: tuple[str, ...] = ("*",)) -> Asset:
    """Digest a local file, or a folder with the names and contents of those of its files that fit a pattern.

    Hidden files and folders do not count: downloaders keep their bookkeeping, with times in it, there.

    Digests are remembered in the store, so that planning with a large model is quick the second time. Raises `UserError` when
    there is nothing at `path`.
    """
    refuse_what_has_no_end(path)
    inside = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [
        file
        for file in inside
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and (file == path or any(file.match(pattern) for pattern in patterns))
    ]
    parts = [f"{file.relative_to(path) if file != path else ''}:{digest}" for file, digest in zip(files, digests(root, files), strict=True)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Asset(path, digest, patterns)


def refuse_what_has_no_end(path: Path) -> None:
    """Raise `UserError` where there is nothing at a path, or what is no file or folder of a user's: devices, pipes, `/proc`."""
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"{str(path)[:200]}: {error}") from None
    if not exists:
        raise UserError(f"{path}: no such file or folder")
    if not (path.is_file() or path.is_dir()) or path.resolve().parts[1:2] in _OF_THE_SYSTEM:
        raise UserError(f"{path}: a device, a pipe or a folder of the system, where a file or folder of yours was expected")


def digests(root: Path, files: Sequence[Path], fresh: bool = False, watch: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return the SHA-256 of each file. They are remembered in the store, so that a large model is read once on a machine; `fresh`
    reads everything again. `watch` is told what is read where that may take a while.
    """
    memory = Memory(root)
    known = [None if fresh else memory.known(file) for file in files]
    unread = [file for file, digest in zip(files, known, strict=True) if digest is None]
    size = sum(file.stat().st_size for file in unread)
    if size > _LONG_READ:
        watch(f"reading {len(unread)} files, {size / 2**30:.1f} GiB, to check their digests")
    read = memory.read(unread)
    return [digest or read[file] for file, digest in zip(files, known, strict=True)]


class Memory:
    """What the files of a store, and those that it reads, held when they were last read on this machine.

    A digest counts as long as size, inode and both times are the same: ctime changes with every write, and cannot be set back.
    Another machine reads for itself: what one has written, it may only have in its own cache.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.host = root, socket.gethostname()
        self.entries = self._stored()

    def _stored(self) -> dict[str, str]:
        plain = read_fields(self.root / _MEMORY)
        return {name: value for name, value in plain.items() if isinstance(value, str) and len(value.split(" ")) == 2}

    def known(self, file: Path) -> str | None:
        """Return a file's digest, if it was read here as it is now."""
        stamp, _, digest = self.entries.get(self._name(file), "").partition(" ")
        return digest if len(digest) == _HEX and stamp == _stamp(file) else None

    def changed(self, file: Path) -> bool:
        """Tell whether a file was read here, and has been written since."""
        return self._name(file) in self.entries and self.known(file) is None

    def read(self, files: Iterable[Path]) -> dict[Path, str]:
        """Read files anew and remember them; returns the digest of each."""
        files = list(files)
        if not files:
            return {}
        stamps = [_stamp(file) for file in files]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashing leaves the interpreter to the others
            found = dict(zip(files, threads.map(file_digest, files), strict=True))
        # One that is written while it is read is not remembered.
        fresh = {self._name(file): f"{stamp} {found[file]}" for file, stamp in zip(files, stamps, strict=True) if stamp == _stamp(file)}
        self.entries = {**self._stored(), **fresh}
        with contextlib.suppress(OSError):  # a store that cannot be written only costs the memory
            self.root.mkdir(exist_ok=True)  # planning for a cluster makes no folder of its here
            write_json(self.root / _MEMORY, self.entries)
        return found

    def _name(self, file: Path) -> str:
        return f"{self.host}:{file.resolve()}"


def _stamp(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size}:{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
