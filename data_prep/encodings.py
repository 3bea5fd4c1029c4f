"""Which encoding a file that is not UTF-8 seems to be in, in words for its owner.

In: some of its bytes. Out: a sentence. Whatever it says, nothing is read in another encoding unless the recipe says so: a guess that
is wrong changes letters in silence.
"""

import re
from itertools import islice
from pathlib import Path

from rounds.data_prep.compressed import opened

_SAMPLE = 1 << 16
_WESTERN = set("äöüÄÖÜßéèêëÉÈàâáãåÀÁÅçÇñÑíìîïóòôõúùûœæøÆØ°µ–—‘’“”…±²³×÷½¼•€£©®™·«»¿¡§´¨ºª\xa0")
# What people's files are in: Western and Eastern European, Cyrillic, Greek, Turkish, Hebrew and Arabic Windows, Chinese, Japanese, Korean,
# Thai, the Mac's, DOS's.
_CANDIDATES = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "mac_roman"),
    *("koi8_r", "cp1255", "cp1256", "iso8859_2", "cp850", "tis_620"),
]


def is_wide(start: bytes) -> bool:
    """Tell by its first bytes whether a file is UTF-16 or UTF-32: by a mark, or by the null byte in each of its letters."""
    is_unmarked = len(start) >= 4 and [not byte for byte in start[:4]] in ([False, True] * 2, [True, False] * 2)
    return is_unmarked or start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))


def fitting(raw: bytes) -> str | None:
    """Name the encoding that fits bytes which are not UTF-8; None where none of those known does."""
    if is_wide(raw[:4]):
        if raw.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
            return "utf-32"
        return "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-16-le" if raw[1] == 0 else "utf-16-be"
    # The lines with other letters alone: among pages of ASCII a guess would not see them.
    lines = b"\n".join(line for line in raw.split(b"\n") if not line.isascii())[:_SAMPLE]
    if not lines:
        return None
    if _is_western(lines):
        return "cp1252"
    from charset_normalizer import from_bytes  # only where a file is to be talked about: it takes a second on a long one

    best = from_bytes(lines, cp_isolation=_CANDIDATES, threshold=0.5).best()
    return best.encoding if best else None


def _is_western(lines: bytes) -> bool:
    """Tell whether bytes read as a Western language in cp1252, which the library takes for cp1250: few other letters, no sign in a word."""
    try:
        text = lines.decode("cp1252")
    except UnicodeDecodeError:
        return False
    other = [letter for letter in text if not letter.isascii()]
    letters = sum(letter.isalpha() for letter in text)
    is_rare = sum(letter.isalpha() for letter in other) <= 0.34 * letters or letters < 8
    return is_rare and set(other) <= _WESTERN and not re.search(r"[^\W\d_][°±²³×÷¼½¿¡§¨´·][^\W\d_]", text)


def sample(path: Path) -> bytes:
    """Return the first lines of a file that are not UTF-8, unpacked."""
    with opened(path) as file:
        return b"".join(islice((line for line in iter(lambda: file.readline(_SAMPLE), b"") if not _is_utf8(line)), 100))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def advice(raw: bytes) -> str:
    """Say what to do about bytes that are not UTF-8."""
    found = fitting(raw)
    if found is None:
        return "save it as UTF-8"
    return f"save it as UTF-8; it reads as {found}: with source `file`, `encoding: {found}` reads it as it is"
