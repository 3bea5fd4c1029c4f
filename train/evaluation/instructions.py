"""Whether an answer follows the instructions of an IFEval prompt (Zhou et al. 2023, arXiv 2311.07911), by lm-eval's own checks.

In: a prompt, the names and arguments of its instructions, and an answer. Out: one truth an instruction, strict. The checks are those that
lm-eval ships; they need packages and a table of nltk's that a plain install lacks, and would try to download the table while they are
imported: `missing` says what lacks, without importing any of it.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError

PACKAGES = ("langdetect", "immutabledict", "nltk")
TABLE = "tokenizers/punkt_tab"
_SUBFOLDERS = ("nltk_data", "share/nltk_data", "lib/nltk_data")
_SYSTEM = ("/usr/share/nltk_data", "/usr/local/share/nltk_data", "/usr/lib/nltk_data", "/usr/local/lib/nltk_data")


def missing() -> str:
    """Say what this environment lacks and how to get it; empty where nothing. Imports nothing: planning calls it."""
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        return f"IFEval's checks need {', '.join(lacking)}: pip install 'rounds[ifeval]'"
    if not any((folder / TABLE).is_dir() or (folder / f"{TABLE}.zip").is_file() for folder in folders()):
        return (
            f"IFEval's checks need nltk's table {TABLE}, which splits sentences: run `python -m nltk.downloader punkt_tab` where there "
            "is a network, and copy ~/nltk_data, or name its folder in NLTK_DATA"
        )
    return ""


def folders() -> list[Path]:
    """Return where nltk looks for its tables, in its order; from `nltk.data.path`, which takes a second and numpy to import."""
    given = [each for each in os.environ.get("NLTK_DATA", "").split(os.pathsep) if each]
    home = Path("~/nltk_data").expanduser()
    return [*map(Path, given), home, *(Path(sys.prefix) / each for each in _SUBFOLDERS), *map(Path, _SYSTEM)]


def followed(prompt: str, names: Sequence[str], arguments: Sequence[Mapping[str, Any]], answer: str) -> list[bool]:
    """Return whether each instruction is followed, as the answer stands; an empty answer follows none.

    Raises `UserError` where something is missing, or an instruction is unknown.
    """
    checks = _checks()
    unknown = [name for name in names if name not in checks.instructions_registry.INSTRUCTION_DICT]
    if unknown or len(names) != len(arguments):
        raise UserError(f"instructions {list(names)} with {len(arguments)} arguments; lm-eval knows no {unknown or 'such list'}")
    example = checks.InputExample(key=0, instruction_id_list=list(names), prompt=prompt, kwargs=[dict(each) for each in arguments])
    return list(checks.test_instruction_following_strict(example, answer).follow_instruction_list)


def _checks() -> Any:
    if lacking := missing():
        raise UserError(lacking)
    # langdetect draws at random unless it is told not to: the same answer would be English in one run and not in the next.
    importlib.import_module("langdetect").DetectorFactory.seed = 0
    return importlib.import_module("lm_eval.tasks.ifeval.utils")
