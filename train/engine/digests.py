"""What a file holds, as a digest: remembered by size and time, so that a large model is read once."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.train.engine.graph import Asset
from rounds.train.engine.store import read_json, write_json

_LONG_READ = 4 << 30  # bytes; some seconds, at the speed of a disk


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def asset(root: Path, path: Path, patterns: tuple[str, ...] = ("*",)) -> Asset:
    """Digest a local file, or a folder with the names and contents of those of its files that fit a pattern.

    Hidden files and folders do not count: downloaders keep their bookkeeping, with times in it, there.

    Digests are remembered in the store by size and modification time, so that planning with a large model is quick the
    second time. Raises `UserError` when there is nothing at `path`.
    """
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"{str(path)[:200]}: {error}") from None
    if not exists:
        raise UserError(f"{path}: no such file or folder")
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


def digests(root: Path, files: Sequence[Path], fresh: bool = False, watch: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return the SHA-256 of each file. They are remembered in the store by size and modification time, so that a large
    model is read once; `fresh` reads everything again. `watch` is told what is read where that may take a while.
    """
    memory = read_json(root / "digests.json") or {}
    stats = [file.stat() for file in files]
    stamps = [f"{file.resolve()}:{s.st_size}:{s.st_mtime_ns}" for file, s in zip(files, stats, strict=True)]
    unknown = {stamp: place for place, stamp in enumerate(stamps) if fresh or stamp not in memory}
    size = sum(stats[place].st_size for place in unknown.values())
    if size > _LONG_READ:
        watch(f"reading {len(unknown)} files, {size / 2**30:.1f} GiB, to check their digests")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashing leaves the interpreter to the others
        read = threads.map(file_digest, [files[place] for place in unknown.values()])
        known = {**memory, **dict(zip(unknown, read, strict=True))}
    if known != memory:
        with contextlib.suppress(OSError):  # a store that cannot be written only costs the memory
            root.mkdir(exist_ok=True)  # planning for a cluster makes no folder of its here
            write_json(root / "digests.json", known)
    return [known[stamp] for stamp in stamps]
