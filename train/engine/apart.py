"""Processes that share a stage by files alone: rank 0 holds it, the others wait for its word and work beside it.

No process group is formed: RANK tells each who it is, and there is no WORLD_SIZE. What the word is says which attempt it belongs to.
"""

import time
from pathlib import Path

from rounds.train.engine import store

_GO = Path("cache", "go")
_POLL_SECONDS = 0.2


def forget(folder: Path) -> None:
    """Before any process of an attempt starts, and when rank 0 has ended: take the word back."""
    (folder / _GO).unlink(missing_ok=True)


def go(folder: Path) -> None:
    """As rank 0, which has claimed the stage and looked at what it reads: let the others begin."""
    (folder / _GO).parent.mkdir(exist_ok=True)
    (folder / _GO).touch()


def begun(folder: Path) -> bool:
    """Tell whether that word was given, and not taken back."""
    return (folder / _GO).exists()


def wait(folder: Path) -> bool:
    """As any other rank: wait for that word, or for the end of the stage; returns whether there is something to do."""
    while not store.done(folder):
        if begun(folder):
            return True
        time.sleep(_POLL_SECONDS)
    return False
