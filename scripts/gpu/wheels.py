"""Wheels for a machine on which nothing can be installed: collected beforehand, unpacked there into a folder of their own.

`collect` walks from what the checks import to what that needs, and leaves out what the machine has. A limit on their sum keeps them
portable: the largest are packed more densely, without their tests and headers, until all fit. What even so does not is left out and
named, largest first, with all that is of no use without it.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple

WANTED = ("pydantic", "psutil", "peft", "accelerate", "trl", "datasets", "deepspeed", "liger-kernel", "flash-pref")
"""What the checks import beside torch and transformers. bitsandbytes is not among them: its wheel alone is larger than the limit."""
HAS = ("torch", "triton", "transformers", "numpy", "packaging", "tqdm", "regex", "requests", "tokenizers", "huggingface-hub", "safetensors",
       "pyyaml", "filelock", "fsspec", "jinja2", "typing-extensions", "setuptools")  # fmt: skip
"""What a machine with torch and transformers has of what these packages need. pydantic is not in it: only newer ones bring it."""
SOURCE_ONLY = ("deepspeed",)
"""Published as source: a wheel of pure Python is built of it here."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
             "manylinux_2_12_x86_64", "manylinux2010_x86_64")  # fmt: skip
LIMIT = 60e6
_UNUSED = re.compile(r"^(pyarrow|pandas)/(tests|include)/")


class Wheel(NamedTuple):
    """One file, and the packages that it needs."""

    name: str
    path: Path
    size: int
    needs: tuple[str, ...]


class Collection(NamedTuple):
    """The wheels that were kept, those that were left out, and the packages that need one of the latter."""

    kept: list[Wheel]
    left_out: list[Wheel]
    useless: list[str]


def collect(folder: Path, python: str, has: tuple[str, ...], constraints: Path) -> Collection:
    """Download the wheels that Python `python` needs beside the packages that the machine `has`, and all that these need in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pins = _pins(constraints, Path(scratch))
        there = set(map(_normal, has))
        found: dict[str, Wheel] = {}
        todo = [name for name in WANTED if name not in there]
        while todo:
            name = todo.pop(0)
            if name not in found:
                found[name] = _download(name, python, pins, Path(scratch))
                todo += [need for need in found[name].needs if need not in there]
        collection = within_limit(found)
        for wheel in collection.kept:
            wheel.path.replace(folder / wheel.path.name)
    return collection


def within_limit(found: dict[str, Wheel], limit: float = LIMIT) -> Collection:
    """Pack more densely what is too large together, largest first, and leave out what even so does not fit, with what needs it."""
    for wheel in sorted(found.values(), key=lambda wheel: -wheel.size):
        if sum(each.size for each in found.values()) > limit:
            found[wheel.name] = _denser(wheel)
    left_out: list[Wheel] = []
    while sum(wheel.size for wheel in found.values()) > limit:
        largest = max(found.values(), key=lambda wheel: wheel.size)
        left_out.append(found.pop(largest.name))
    gone = {wheel.name for wheel in left_out}
    useless: set[str] = set()
    while more := {wheel.name for wheel in found.values() if (gone | useless) & set(wheel.needs)} - useless:
        useless |= more
    return Collection(sorted(found.values(), key=lambda wheel: -wheel.size), left_out, sorted(useless))


def _denser(wheel: Wheel) -> Wheel:
    """Pack a wheel anew by LZMA, a third smaller than the usual way, without what nobody imports; Python and pip open it as any other."""
    dense = wheel.path.with_suffix(".dense")
    with zipfile.ZipFile(wheel.path) as whole, zipfile.ZipFile(dense, "w", zipfile.ZIP_LZMA) as packed:
        for name in whole.namelist():
            if not _UNUSED.search(name):
                packed.writestr(name, whole.read(name))
    dense.replace(wheel.path)
    return wheel._replace(size=wheel.path.stat().st_size)


def _pins(constraints: Path, scratch: Path) -> Path:
    """Write our pinned versions without those that the machine brings itself."""
    lines = [line for line in constraints.read_text().splitlines() if not line.startswith(("torch==", "transformers=="))]
    (scratch / "pins.txt").write_text("\n".join(lines) + "\n")
    return scratch / "pins.txt"


def _download(name: str, python: str, pins: Path, scratch: Path) -> Wheel:
    before = set(scratch.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if name in SOURCE_ONLY:
        command = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(scratch), "--constraint", str(pins), name]
    else:
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        command = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}",
                   *platforms, "--dest", str(scratch), "--constraint", str(pins), name]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "DS_BUILD_OPS": "0"})
    made = set(scratch.glob("*.whl")) - before
    if done.returncode or not made:
        raise SystemExit(f"error: no wheel of {name} for Python {python}: {done.stderr.strip()[-500:]}")
    path = made.pop()
    with zipfile.ZipFile(path) as archive:
        metadata = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
    return Wheel(name, path, path.stat().st_size, tuple(_needs(headers.get_all("Requires-Dist") or [], python)))


def _needs(requirements: list[str], python: str) -> list[str]:
    """Return the names of what is required on such a machine, without extras."""
    from packaging.requirements import Requirement

    there = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "platform_system": "Linux",
             "platform_machine": "x86_64", "extra": ""}  # fmt: skip
    parsed = [Requirement(each) for each in requirements]
    return [_normal(each.name) for each in parsed if each.marker is None or each.marker.evaluate(there)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def unpack(wheels: Path, site: Path) -> list[str]:
    """Unpack wheels into a folder to be put on the path, and return their files' names. No pip is needed for it."""
    files = sorted(wheels.glob("*.whl"))
    for file in files:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                # What a wheel keeps apart for the folder of pure or of compiled packages belongs at the top.
                place = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", member.filename)
                if not place.endswith("/") and ".data/" not in place:
                    target = site / place
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(member))
    return [file.name for file in files]
