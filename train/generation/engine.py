"""The one seam behind which a policy writes: which engine, for whom it is named, is no other code's business.

In: an engine's name, a policy and a row of the cluster file. Out: a function that answers prompts, given as token ids, so that the
template is ours whatever the engine. Each answer has a seed of its own; how many are asked at once, and in which order, changes
nothing but the time (on the same machine in fp32 not even the last bit).
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rounds.train.config.cluster import Machine
from rounds.train.config.decoding import Decoding, EngineName
from rounds.train.engine.policy import Policy


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to write: the prompt's tokens, and the seed that the answer is drawn by."""

    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What was drawn."""

    token_ids: list[int]
    """Without the token that ended it."""
    ended: bool
    logprob: float
    """In nats, of all that was drawn, the end among it, before temperature and top_p."""


Write = Callable[[Sequence[Ask], Decoding], list[Reply]]
"""Answers in the order in which they were asked for."""


@dataclass(frozen=True)
class Subject:
    """The policy that writes, where, and the longest row that it is given, answer included, in tokens."""

    policy: Policy
    ends: list[int]
    """Tokens that end an answer."""
    machine: Machine
    window: int
    folder: Path
    """For what an engine keeps while it runs; several processes share it."""


@contextmanager
def opened(name: EngineName, subject: Subject) -> Iterator[Write]:
    """Open an engine; what it holds is let go of at the end."""
    module = importlib.import_module(f"rounds.train.generation.{name}")
    with module.opened(subject) as write:
        yield write
