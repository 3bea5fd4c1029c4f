"""Keys that outlive a release: a field that comes later, and says which value means as before, changes no key.

Covers: train/engine/params.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from rounds.data_prep.schema import Later, Section

REPOSITORY = Path(__file__).resolve().parents[3]
KEYS = Path(__file__).parent / "quickstart_keys.txt"
SCHEMA = ("data_prep/schema.py", "train/config/recipe.py", "train/config/training.py", "train/config/evaluation.py",
          "train/engine/params.py")  # fmt: skip
FIELD = '    later_field: Annotated[int | None, Later(None)] = None\n    """Came with a later release."""\n'


class Inner(Section):
    old: int
    new: Annotated[int, Later(3)] = 3


class Outer(Section):
    inner: Inner
    rows: tuple[Inner, ...] = ()
    also_new: Annotated[str | None, Later(None)] = "by default now"


def test_a_later_field_is_left_out_where_it_says_as_before_and_kept_where_it_does_not():
    outer = Outer(inner=Inner(old=1), rows=(Inner(old=2, new=4),), also_new=None)
    assert outer.stored() == {"inner": {"old": 1}, "rows": [{"old": 2, "new": 4}]}
    assert Outer(inner=Inner(old=1)).stored()["also_new"] == "by default now"


def test_what_an_old_release_stored_is_read_as_before_whatever_the_default_is_now():
    old = {"inner": {"old": 1}, "rows": [{"old": 2}]}
    read = Outer.read_stored(old)
    assert (read.also_new, read.inner.new, read.rows[0].new) == (None, 3, 3)
    assert read.stored() == old
    assert Outer.model_validate(old).also_new == "by default now"  # in a recipe it means what it means now


def with_later_fields(text: str) -> str:
    """Add an optional field to every section of a schema file that has fields of its own or of a base."""
    imported = "from rounds.data_prep.schema import Later as Later\nfrom typing import Annotated as Annotated\n"
    heads = re.compile(
        r'^class \w+\((?:Section|\w+Use|Training, DpoLoss|Training|Gate|Start\w+)\):\n    """(?:.|\n)*?"""\n',
        re.MULTILINE,
    )
    changed, count = heads.subn(lambda head: f"{head[0]}\n{FIELD}", text)
    assert count, "no section was found"
    own = "class Later" in text
    return changed if own else changed.replace("\n\n\n", f"\n{imported}\n\n", 1)


def test_a_field_added_to_every_section_of_the_schema_leaves_every_golden_key(tmp_path: Path):
    copy = tmp_path / "rounds"
    for folder in ("train", "data_prep", "recipes"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SCHEMA:
        path = copy / name
        path.write_text(with_later_fields(path.read_text()))
    code = (
        "import sys\nfrom rounds.train.config.recipe import Recipe\nfrom rounds.train.config.training import DpoLoss\n"
        "assert 'later_field' in Recipe.model_fields and 'later_field' in DpoLoss.model_fields\n"
        f"assert sys.modules['rounds.train'].__file__.startswith({str(copy)!r})\n"
        "from rounds.train.cli import main\nmain()"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, "plan", "quickstart", "--keys"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    golden = [line for line in KEYS.read_text().splitlines() if line and not line.startswith("#")]
    assert run.stdout.splitlines() == golden
