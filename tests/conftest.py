"""What all tests share: no network, and one thread each."""

import os

import pytest

# Read by torch and the Hugging Face libraries when they are first imported, so they are set before any test is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"


def pytest_addoption(parser):
    """`--slow` runs the tests that take minutes."""
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config, items):
    """Skip slow tests unless asked for."""
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: scripts/test --slow"))
