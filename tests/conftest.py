"""What all tests share: no network, one thread each, and real sets where they are."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# On a shared machine a first example can take any time.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

# Read by torch and the Hugging Face libraries when they are first imported, so they are set before any test is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

LONGEST = {"test_end_to_end.py", "test_fetch.py", "test_ranks.py", "test_slurm.py"}


def pytest_addoption(parser):
    """`--slow` runs the tests that take minutes."""
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config, items):
    """Skip slow tests unless asked for. The longest come first, so that no worker is left with one when all else is done."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(7200))
            if not config.getoption("--slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: scripts/test --slow"))


@pytest.fixture
def shared_data() -> Path:
    """The folder of real sets beside the repository; skips where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real sets are not at {folder}")
    return folder
