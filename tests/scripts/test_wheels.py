"""Wheels for a machine on which nothing can be installed: they fit, and are opened there as any other."""

import random
import zipfile
from pathlib import Path

from scripts.gpu import wheels

LINES = "".join(f"value_{number} = {random.Random(number).random()}\n" for number in range(3000))


def made(folder: Path, name: str, needs: tuple[str, ...] = ()) -> wheels.Wheel:
    """Make a wheel with a module, one of its tests, and a library that is kept apart."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", LINES)
        archive.writestr(f"{name}/tests/test_all.py", LINES)
        archive.writestr(f"{name}-1.0.data/platlib/{name}/lib.so", b"\0" * 64)
    return wheels.Wheel(name, path, path.stat().st_size, needs)


def test_what_is_too_large_is_packed_more_densely_and_opens_to_the_same(tmp_path: Path):
    large = made(tmp_path, "pyarrow")
    collection = wheels.within_limit({"pyarrow": large}, limit=large.size - 1)
    assert [wheel.name for wheel in collection.kept] == ["pyarrow"] and collection.left_out == collection.useless == []
    assert collection.kept[0].size == large.path.stat().st_size < large.size
    assert wheels.unpack(tmp_path, tmp_path / "site") == ["pyarrow-1.0-py3-none-any.whl"]
    assert (tmp_path / "site" / "pyarrow" / "__init__.py").read_text() == LINES
    assert (tmp_path / "site" / "pyarrow" / "lib.so").read_bytes() == b"\0" * 64
    assert not (tmp_path / "site" / "pyarrow" / "tests").exists()


def test_what_fits_stays_as_it_was_published(tmp_path: Path):
    small = made(tmp_path, "pandas")
    before = small.path.read_bytes()
    assert wheels.within_limit({"pandas": small}, limit=small.size).kept == [small]
    assert small.path.read_bytes() == before


def test_what_never_fits_is_named_with_what_needs_it(tmp_path: Path):
    found = {"pyarrow": made(tmp_path, "pyarrow"), "datasets": wheels.Wheel("datasets", tmp_path / "d.whl", 1, ("pyarrow",)),
             "trl": wheels.Wheel("trl", tmp_path / "t.whl", 1, ("datasets",))}  # fmt: skip
    for each in ("d.whl", "t.whl"):
        zipfile.ZipFile(tmp_path / each, "w").close()
    collection = wheels.within_limit(found, limit=100)
    assert [wheel.name for wheel in collection.left_out] == ["pyarrow"]
    assert collection.useless == ["datasets", "trl"]
