"""Small files that a person names: recipes, templates, prompts, tasks. One is read in a moment, or refused in one message."""

import difflib
from pathlib import Path

from rounds.data_prep.errors import UserError

MOST_BYTES = 1 << 20
"""Far more than any of these has; the paper's recipes have 4 KB."""


def text(path: Path, kind: str = "text") -> str:
    """Return what a file says. Raises `UserError` for one that is not there, that may not be read, that is no text, a device or a pipe,
    which might never end, or far larger than such a file is.
    """
    check(path)
    # 0 is what the kernel says of a file that it makes up while it is read, perhaps without end.
    content = path.read_bytes() if path.stat().st_size else b""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: not valid {kind}: line {line} holds the byte 0x{content[error.start]:02x}, which is no UTF-8") from None


def check(path: Path) -> None:
    """Raise `UserError` where `text` would not read a file, as far as its name and size tell."""
    try:
        is_there, is_file, size = path.exists(), path.is_file(), path.stat().st_size if path.exists() else 0
    except (OSError, ValueError) as error:  # a name that no file can have, a folder that may not be entered
        raise UserError(f"{str(path)[:200]}: {getattr(error, 'strerror', None) or error}") from None
    if not is_there:
        raise UserError(missing(path))
    if not is_file:
        raise UserError(f"{path}: no such file, but {'a folder' if path.is_dir() else 'a device or a pipe'}")
    if size > MOST_BYTES:
        raise UserError(f"{path}: {size:,} bytes, where a small file was expected ({MOST_BYTES:,} at most)")


def refuse_empty(path: Path) -> None:
    """Raise `UserError` where `text` would, and for a file that says nothing."""
    if not text(path).strip():
        raise UserError(f"{path}: the file is empty")


def missing(path: Path) -> str:
    """Say that a file is not there, with the nearest name beside it."""
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob(f"*{path.suffix}")], n=1)
    return f"{path}: no such file" + (f"; did you mean {path.parent / near[0]}?" if near else "")
