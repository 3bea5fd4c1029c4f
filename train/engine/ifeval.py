"""What IFEval's checks need of an environment, and whether it is there: told without importing any of it, for planning too.

In: nothing. Out: what lacks, in words. The checks are lm-eval's (`rounds.train.evaluation.instructions`); a plain install lacks two
packages and a table of nltk's that splits sentences, which lm-eval would try to download while it is imported.
"""

import importlib.util
import os
import sys
from pathlib import Path

PACKAGES = ("langdetect", "immutabledict", "nltk")
TABLE = "tokenizers/punkt_tab"
_SUBFOLDERS = ("nltk_data", "share/nltk_data", "lib/nltk_data")
_SYSTEM = ("/usr/share/nltk_data", "/usr/local/share/nltk_data", "/usr/lib/nltk_data", "/usr/local/lib/nltk_data")


def missing() -> str:
    """Say what this environment lacks and how to get it; empty where nothing."""
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
    """Return where nltk looks for its tables, in its order: `nltk.data.path`, which takes a second and numpy to import."""
    given = [each for each in os.environ.get("NLTK_DATA", "").split(os.pathsep) if each]
    home = Path("~/nltk_data").expanduser()
    return [*map(Path, given), home, *(Path(sys.prefix) / each for each in _SUBFOLDERS), *map(Path, _SYSTEM)]
