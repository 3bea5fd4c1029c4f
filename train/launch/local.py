"""Run a plan on this machine, in order, each stage in a process of its own.

The processes are forked from one that has already imported torch and TRL, so a stage starts at once and still leaves
nothing behind in memory. Where the cluster row says more than one process, that process is torchrun's agent, and the ranks
are fresh interpreters. When the launcher dies, however it dies, the running stage ends within a second or two.
"""

import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Cluster
from rounds.train.engine import claims, ranks, store, worker
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.params import Requirement
from rounds.train.engine.records import FAILED, JOB, STOP
from rounds.train.launch import apart, failures, interrupts
from rounds.train.launch.quiet import QUIET
from rounds.train.weights import requirements

POLL_SECONDS = 0.2
_PRELOAD = ["rounds.train.launch.preload"]
_PORTS_TRIED = 3
_SECONDS_TO_END = 10
TORCHRUN_LOG = "logs/torchrun.txt"


@dataclass(frozen=True)
class Event:
    """Something to show: a stage `starts`, `moves` on, `waits` for another run, or is `done`."""

    kind: str
    stage: Stage
    folder: Path


class StageFailed(UserError):
    """A stage ended without finishing; the message says which, why, and where its log is."""


def run(
    stages: Sequence[Stage],
    root: Path,
    cluster: Cluster,
    wandb: dict[str, str | None] | None,
    watch: Callable[[Event], None],
) -> None:
    """Run what is not done, parents first.

    Raises `UserError` before the first where a stage asks for what this machine does not have, `StageFailed` at the first
    stage that does not finish, and `KeyboardInterrupt` at Ctrl-C, when no process is left.
    """
    with _ended_by_interrupts():
        _check(stages, root, cluster)
        _run(stages, stages, root, cluster, wandb, watch)


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Leave no process behind a Ctrl-C: the shell's prompt is the last on the screen."""
    try:
        with interrupts.raised():
            yield
    except KeyboardInterrupt:
        ours = psutil.Process().children(recursive=True)
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=_SECONDS_TO_END)
        raise


def _run(
    stages: Sequence[Stage],
    planned: Sequence[Stage],
    root: Path,
    cluster: Cluster,
    wandb: dict[str, str | None] | None,
    watch: Callable[[Event], None],
) -> None:
    todo = store.unfinished(root, stages)
    context = multiprocessing.get_context("forkserver")
    for stage in stages:
        if store.done(store.folder(root, stage)) or any(isinstance(source, Asset) for source in stage.inputs.values()):
            # What follows reads what was asked, and where the user's files are now, from here; a description may be damaged too.
            store.prepare(root, stage, cluster.store_access)
    for stage in todo:
        folder = store.prepare(root, stage, cluster.store_access)
        machine = cluster.machine(stage.row, stage.name)
        (folder / STOP).unlink(missing_ok=True)
        watch(Event("starts", stage, folder))
        job = worker.Job(folder=folder.resolve(), machine=machine, wandb=wandb, trials=requirements.trials(stage, planned, cluster))
        exit_code, output = _run_one(context, job, stage, watch)
        if not store.done(folder):
            if (folder / STOP).exists() and exit_code and not (folder / FAILED).exists():
                raise StageFailed(f"{stage.name} stopped, as the file {folder / 'stop'} asked; the same command goes on from there")
            raise StageFailed(failures.why(stage.name, folder, exit_code, output))
        watch(Event("done", stage, folder))


def _check(stages: Sequence[Stage], root: Path, cluster: Cluster) -> None:
    """Refuse a run whose stages ask for what is not here. Also sets what all processes start with: the forkserver starts now."""
    todo = store.unfinished(root, stages)
    context = multiprocessing.get_context("forkserver")
    if not all(stage.kind.light for stage in todo):
        context.set_forkserver_preload(_PRELOAD)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    resource_tracker.ensure_running()  # which takes the signal mask back when it starts
    with interrupts.kept_from_children():
        forkserver.ensure_running()
    wrong = []
    for stage in todo:
        machine = cluster.machine(stage.row, stage.name)
        if ranks.processes(stage.kind, machine)[0] > 1:
            wrong.append(
                f"{stage.name}: its cluster row says nodes: {machine.nodes}; this machine is one node: use a SLURM cluster file, "
                "or set nodes: 1"
            )
    asks = requirements.asks(todo, cluster)
    if asks:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_look, args=(asks, sending), name="look")
        process.start()
        sending.close()
        try:
            wrong += receiving.recv()
        except EOFError:
            wrong.append("looking at what this machine has ended without an answer; see the lines above")
        finally:
            process.join()
    if wrong:
        raise UserError("\n".join(wrong))


def _look(asks: list[Requirement], sending: Any) -> None:
    """In a process of its own, since the launcher has no torch: send what cannot be had here."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    wrong = []
    for ask in asks:
        lacks = [*requirements.unusable(ask), requirements.too_few_gpus(ask)]
        wrong += [f"{', '.join(ask.stages)}: {reason}" for reason in lacks if reason]
    sending.send(wrong)
    sending.close()


def _run_one(context: Any, job: worker.Job, stage: Stage, watch: Callable[[Event], None]) -> tuple[int | None, str]:
    """Run a stage to its end, alone or as several ranks. Returns the exit code and what torchrun said."""
    several = ranks.processes(stage.kind, job.machine) != (1, 1)
    together, output = several and not stage.kind.apart, ""
    target = _agent if together else _side_by_side if several else _child
    for _ in range(_PORTS_TRIED if together else 1):
        process = context.Process(target=target, args=(job,), name=stage.name)
        process.start()
        try:
            _follow(process, stage, job.folder, watch)
        finally:
            if process.is_alive():
                process.terminate()
                process.join()
        output = (job.folder / TORCHRUN_LOG).read_text(errors="replace") if together else ""
        if not failures.port_taken(output):
            break
    return process.exitcode, output


def run_all(
    stages: Sequence[Stage],
    root: Path,
    cluster: Cluster,
    wandb: dict[str, str | None] | None,
    watch: Callable[[Event], None],
) -> dict[str, str]:
    """Run what can be run: a stage that does not finish stops only those that need it.

    Returns stage key -> why, for the stages that did not finish, with those that were not started for that reason. Raises
    `UserError` as `run` does, before the first.
    """
    lost: dict[str, str] = {}
    with _ended_by_interrupts():
        _check(stages, root, cluster)
        for stage in stages:
            because = next((lost[parent.key] for parent in stage.parents if parent.key in lost), None)
            if because is None:
                try:
                    _run([stage], stages, root, cluster, wandb, watch)
                except StageFailed as error:
                    because = str(error)
            if because is not None:
                lost[stage.key] = because
    return lost


def _follow(process: BaseProcess, stage: Stage, folder: Path, watch: Callable[[Event], None]) -> None:
    holder, waiting = None, False
    while process.is_alive():
        process.join(POLL_SECONDS)
        pid = claims.holding_process(folder)
        if pid != holder:
            holder, waiting = pid, pid is not None and not _is_ours(pid, process.pid)
            if waiting:
                watch(Event("waits", stage, folder))
        watch(Event("moves", stage, folder))


def _is_ours(pid: int, process: int | None) -> bool:
    """Tell whether a process is ours or, as a rank is of torchrun, one that ours started."""
    try:
        return pid == process or any(parent.pid == process for parent in psutil.Process(pid).parents())
    except psutil.NoSuchProcess:
        return False


def _child(job: worker.Job) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker.main(job)


def _lead(job: worker.Job) -> None:
    """Begin as a process that starts others: the job where they read it, a log of its own, and an end with the launcher's."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    store.write_json(job.folder / JOB, job.model_dump(mode="json"))
    log = job.folder / TORCHRUN_LOG
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    worker.write_to(log)


def _agent(job: worker.Job) -> None:
    """Be torchrun's agent for one node: start the ranks, and end them all when one fails or the launcher is gone."""
    from torch.distributed import run as torchrun

    _lead(job)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // job.machine.processes)))
    torchrun.main(
        ["--nnodes=1", f"--nproc-per-node={job.machine.processes}", "--node-rank=0", "--master-addr=127.0.0.1",
         f"--master-port={_free_port()}", "--max-restarts=0", "-m", "rounds.train.engine.worker", str(job.folder / JOB)]
    )  # fmt: skip


def _side_by_side(job: worker.Job) -> None:
    """Start processes that share the stage by files, and end as the first of them does."""
    _lead(job)
    os._exit(apart.main(job.folder / JOB, job.machine.processes, 0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_with_parent() -> None:
    """Leave at once when the launcher is gone: an orphan would hold the stage against the next run."""
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)
