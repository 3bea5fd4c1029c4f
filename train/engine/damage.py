"""Whether a finished result is still what was written: sizes and small files whenever it is used, all bytes before a stage reads it.

`done.json` holds the size and SHA-256 of every file of a result, and a seal over itself. What differs is never made again by
itself, since it may have cost weeks and may be had from a backup: it is told, with the command that removes it.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.train.engine import records, store
from rounds.train.engine.digests import Memory
from rounds.train.engine.graph import Stage, canonical_json
from rounds.train.engine.records import Done

_SMALL = 1 << 20
"""Bytes of a file that is read whenever it is used: scores, decisions, descriptions."""


@dataclass(frozen=True)
class Damage:
    """A file of a finished stage that is not what was written."""

    stage: str
    folder: Path
    file: str
    says: str

    def __str__(self) -> str:
        return f"{self.stage} ({self.folder.name}) is damaged: {self.file} {self.says}"


def seal(record: dict[str, Any]) -> str:
    """Return the digest of what `done.json` says, less the seal itself."""
    plain = json.loads(json.dumps({name: value for name, value in record.items() if name != "seal"}))  # as it is read back
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def quick(folder: Path, memory: Memory, name: str = "") -> list[Damage]:
    """Check a finished stage by its sizes, its small files, and those that were written since they were last read here."""
    return _damages(folder, name, memory, all_bytes=False, fresh=False)


def full(folder: Path, memory: Memory, name: str = "", fresh: bool = False) -> list[Damage]:
    """Check all bytes of a finished stage; what was read on this machine as it is now is not read again, unless `fresh`."""
    return _damages(folder, name, memory, all_bytes=True, fresh=fresh)


def of_run(root: Path, stages: Iterable[Stage]) -> list[Damage]:
    """Check all finished stages of a run as `quick` does."""
    memory = Memory(root)
    return [each for stage in stages for each in quick(store.folder(root, stage), memory, stage.name)]


def told(damages: Sequence[Damage], and_then: str = "") -> UserError:
    """Say what is damaged and the one command that mends it; `and_then` is the run that makes it again."""
    folders = list(dict.fromkeys(damage.folder for damage in damages))
    command = store.remedy(folders) + (f" && {and_then}" if and_then else "")
    lines = "\n".join(map(str, damages))
    after = "removes it and makes it again" if and_then else "removes it, and the same run then makes it again"
    return UserError(f"{lines}\nTo mend it: `{command}` {after}; or put the files of a backup back")


def _damages(folder: Path, name: str, memory: Memory, all_bytes: bool, fresh: bool) -> list[Damage]:
    record = store.done(folder)
    if record is None or (record.skipped and not record.digests):
        return []
    name = name or folder.name.rpartition("-")[0]
    if folder.is_symlink():
        return [Damage(name, folder, str(folder), "is a link, which a store does not follow")]
    wrong = _bookkeeping(folder, record)
    if wrong:
        return [Damage(name, folder, records.DONE, wrong)]
    found: list[Damage] = []
    unread: list[str] = []
    for file, digest in record.digests.items():
        path = folder / file
        if path.is_symlink():
            found.append(Damage(name, folder, file, "is a link, which a store does not follow"))
            continue
        size, wanted = path.stat().st_size, record.sizes.get(file)
        known = None if fresh else memory.known(path)
        if wanted is not None and size != wanted:
            now = known or memory.read([path])[path]
            found.append(Damage(name, folder, file, f"has {size:,} bytes and {wanted:,} were written: {_digests(now, digest)}"))
        elif known is None and (all_bytes or size <= _SMALL or memory.changed(path)):
            unread.append(file)
        elif known is not None and known != digest:
            found.append(Damage(name, folder, file, f"has another content than was written: {_digests(known, digest)}"))
    read = memory.read([folder / file for file in unread])
    for file in unread:
        now, digest = read[folder / file], record.digests[file]
        if now != digest:
            found.append(Damage(name, folder, file, f"has another content than was written: {_digests(now, digest)}"))
    return found


def _bookkeeping(folder: Path, record: Done) -> str | None:
    """Say what is wrong with `done.json` itself; None where nothing is."""
    if not record.digests:
        return "lists no file of a result"
    plain = store.read_json(folder / records.DONE)
    if record.seal is not None and (not isinstance(plain, dict) or record.seal != (now := seal(plain))):
        return f"was changed: {_digests(now, record.seal)}" if isinstance(plain, dict) else "was changed"
    return None


def _digests(now: str, then: str) -> str:
    return f"its SHA-256 is {now}, and {then} was written"
