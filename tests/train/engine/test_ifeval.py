"""What IFEval's checks lack is said with what to do, and looked for where nltk looks."""

import subprocess
import sys

import pytest

from rounds.train.engine import ifeval


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval, "PACKAGES", ("nltk", "no_such_package_1"))
    assert ifeval.missing() == "IFEval's checks need no_such_package_1: pip install 'rounds[ifeval]'"


def test_the_table_is_looked_for_where_nltk_looks() -> None:
    nltk = pytest.importorskip("nltk")
    assert [str(folder) for folder in ifeval.folders()] == nltk.data.path


def test_to_ask_imports_nothing_that_planning_may_not() -> None:
    asked = "import sys; from rounds.train.engine import ifeval; ifeval.missing(); print({'nltk', 'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.strip() == "set()"
