"""The processes that train one stage together: who this one is, how they join, agree and wait for each other.

Each is a rank: alone (rank 0 of 1), or started by torchrun, which sets RANK, WORLD_SIZE, LOCAL_RANK and where rank 0 is found.
Imports torch only where ranks talk, so that planning may import this.
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.engine import compiling
from rounds.train.engine.kinds import Kind

EXIT_STOPPED = 75
"""Exit code of a rank that stopped because it was asked to (EX_TEMPFAIL); torchrun turns it into 1."""
_TOLD = "rounds/told"
_POLL_SECONDS = 0.2
_TIMEOUT = timedelta(minutes=30)
"""Longest that a rank waits for the others; rank 0 writes a 70B model in less."""
_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|socket timeout|nccl|gloo|DistBackend|DistNetwork|DistStore",
    re.I,
)


class Stopped(Exception):
    """The stage was asked to stop, has written a checkpoint, and is to be started again later: no failure."""


def rank() -> int:
    """Return this process's place among all ranks, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many ranks there are, over all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def node() -> str:
    """Name the machine: SLURM's name for it, where several of its nodes may be one host."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def processes(kind: Kind, machine: Machine) -> tuple[int, int]:
    """Return how many nodes, and processes on each, a stage of this kind is started with."""
    return (machine.nodes, machine.processes) if kind.spread or kind.apart else (1, 1)


class Others:
    """What rank 0 tells the rest before they start: whether there is anything to do. Waits as long as rank 0 does."""

    def __init__(self) -> None:
        from torch.distributed import rendezvous

        self.store, _, _ = next(iter(rendezvous("env://", timeout=_TIMEOUT)))

    def tell(self, go: bool) -> None:
        """As rank 0, which has claimed the stage: go on together, or leave."""
        self.store.set(_TOLD, "go" if go else "leave")

    def wait(self) -> bool:
        """As any other rank: wait until rank 0 has claimed the stage; returns whether there is something to do."""
        while not self.store.check([_TOLD]):
            time.sleep(_POLL_SECONDS)
        return self.store.get(_TOLD) == b"go"

    def join(self, machine: Machine) -> None:
        """Form the process group in which the ranks train. Raises `UserError` where it is not the one of the row."""
        import torch
        from torch import distributed

        cuda = machine.device != "cpu" and torch.cuda.is_available()
        if world_size() != machine.world_size:
            raise UserError(
                f"{world_size()} ranks were started, and the cluster row says {machine.nodes} nodes x {machine.processes} processes: "
                f"start torchrun with --nnodes={machine.nodes} --nproc-per-node={machine.processes}"
            )
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if cuda and torch.cuda.device_count() < here:
            raise UserError(
                f"the cluster row says processes: {here}, and torch sees {torch.cuda.device_count()} GPUs on {node()}: lower "
                "`processes`, or check CUDA_VISIBLE_DEVICES and what the scheduler granted"
            )
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        _form(machine, distributed.PrefixStore("ranks", self.store), cuda)


def join_alone(machine: Machine) -> None:
    """Form a process group of one, without which DeepSpeed would look for MPI: for a process that no torchrun started."""
    if machine.deepspeed is None or "RANK" in os.environ:
        return
    import torch
    from torch import distributed

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    # Asked for by name, and never used: the store is in memory.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    _form(machine, distributed.HashStore(), machine.device != "cpu" and torch.cuda.is_available())


def _form(machine: Machine, meeting: Any, cuda: bool) -> None:
    """Form the process group of all ranks, which find each other in a store of torch's, and DeepSpeed's on it."""
    from torch import distributed

    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=meeting,
        rank=rank(),
        world_size=world_size(),
        timeout=_TIMEOUT,
    )
    if machine.deepspeed is not None:
        compiling.guard()
        import deepspeed

        # Must come before SFTConfig is made: DeepSpeed would otherwise count one rank under ZeRO-3.
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False)


def agree(number: int) -> int:
    """Return rank 0's number on every rank."""
    return _from_rank_0([number])[0]


def agree_on(numbers: Sequence[int]) -> list[int]:
    """Return rank 0's numbers on every rank; those of the others are not looked at."""
    length = agree(len(numbers))
    return _from_rank_0(numbers if rank() == 0 else [0] * length)


def _from_rank_0(numbers: Sequence[int]) -> list[int]:
    """Return rank 0's numbers on every rank, each of which gives as many."""
    if world_size() == 1:
        return list(numbers)
    import torch
    from torch import distributed

    values = torch.tensor(list(numbers), dtype=torch.long)
    distributed.broadcast(values, src=0)
    return values.tolist()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier()


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Let rank 0 do what is inside before the others: it writes a cache that they read."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def leave() -> None:
    """Take the process group down, as every rank does when its stage is finished."""
    if "RANK" in os.environ:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def is_lost_contact(error: BaseException) -> bool:
    """Tell whether a rank failed only because another did: what the other one says is then the cause."""
    return world_size() > 1 and not isinstance(error, UserError) and bool(_LOST.search(f"{type(error).__name__} {error}"))
