"""A file or folder that is there whole, or not at all: written under another name, which then takes the right one's place."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path, many: bool = False) -> Iterator[Path]:
    """Give the name to write under; when the block ends well, what is there becomes `path`.

    Where `many` processes may write the same path at once, each has a name of its own, and the last one wins.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if many else f"{path.name}.partial")
    if partial.is_dir():  # of an attempt that was cut off
        shutil.rmtree(partial)
    yield partial
    partial.replace(path)
