"""The bytes of a file of rows, unpacked where its name says that it is compressed, and as UTF-8 where another encoding is known.

In: a path. Out: a stream of bytes. Formats: gzip, bzip2 and xz as the standard library reads them, Zstandard as Arrow does.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any

from rounds.data_prep.errors import UserError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_CHUNK = 1 << 16


def suffix(path: Path) -> str:
    """Return the suffix that says how rows are written: `.jsonl` of `Rows.JSONL.gz`."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last in COMPRESSIONS else last


def stem(path: Path) -> str:
    """Return a file's name without the suffix of its rows and that of its compression."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


def opened(path: Path, encoding: str | None = None) -> IO[bytes]:
    """Open a file for reading its bytes; text of another `encoding` comes as UTF-8.

    A byte that the encoding has no letter for stays what it is, and so is no UTF-8. Reading raises `UserError` where the file cannot
    be unpacked or decoded.
    """
    packed = path.suffix.lower() in COMPRESSIONS
    if not packed and encoding is None:
        return path.open("rb")
    return io.BufferedReader(_Plain(path, encoding), _CHUNK)


def is_compressed(path: Path) -> bool:
    """Tell by its name whether a file is compressed."""
    return path.suffix.lower() in COMPRESSIONS


class _Plain(io.RawIOBase):
    """What is in a file once it is unpacked and decoded."""

    def __init__(self, path: Path, encoding: str | None) -> None:
        self._path, self._encoding, self._rest = path, encoding, b""
        self._file = _unpacked(path)
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape") if encoding else None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = self._read(len(buffer))
            self._rest = self._as_utf8(chunk)
            if not chunk:
                break
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            what = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise UserError(f"{self._path}: cannot be unpacked: {what}; the file is cut off, or is not what its suffix says") from None

    def _as_utf8(self, chunk: bytes) -> bytes:
        if self._decoder is None:
            return chunk
        try:
            return self._decoder.decode(chunk, final=not chunk).encode("utf-8", "surrogateescape")
        except UnicodeError as error:
            raise UserError(f"{self._path}: cannot be read in encoding {self._encoding}: {error}") from None


def _unpacked(path: Path) -> Any:
    kind = path.suffix.lower()
    if kind == ".zst":
        import pyarrow as pa

        return pa.input_stream(str(path), compression="zstd")
    return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(kind, open)(path, "rb")
