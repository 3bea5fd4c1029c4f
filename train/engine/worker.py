"""Run one stage: claim its folder, call its function, write `done.json` last.

The same entry serves every launcher: it needs the stage's folder, prepared by `store.prepare`, and a cluster row. A launcher
that starts a fresh interpreter calls `python -m rounds.train.engine.worker JOB.json`, where the file holds a `Job`; torchrun starts the
same line as every rank. Rank 0 then claims the folder and writes to it; the others only compute, and log to `logs/rank-N.txt`.
"""

import contextlib
import importlib
import json
import logging
import os
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import Section
from rounds.train.config.cluster import Machine
from rounds.train.engine import apart, claims, damage, policy, ranks, records, store, tracking, twins
from rounds.train.engine import digests as file_digests
from rounds.train.engine.kinds import Kind
from rounds.train.engine.params import Trial
from rounds.train.engine.records import POLICY, Done, Failure, Input, Spec

logger = logging.getLogger("rounds")

_SECONDS_BETWEEN_LOOKS = 0.5


class Job(Section):
    """What a launcher tells a worker besides the stage itself; none of it can change the answer."""

    folder: Path
    machine: Machine
    wandb: dict[str, str | None] | None = None
    """Project, entity and group; None records nothing."""
    trials: tuple[Trial, ...] = ()
    """What later stages will do with the policy that this one starts: tried out before it is done, so that none of them dies of it."""


def code_of(kind: Kind) -> Callable[[Any, dict[str, Path], Path, Machine], dict]:
    """Import the function of a kind of stage; it takes the kind's params record, inputs, the folder to write to, and the machine."""
    return _imported(kind.code)


def _imported(code: str) -> Callable[..., Any]:
    module, _, name = code.partition(":")
    return getattr(importlib.import_module(module), name)


def run(job: Job) -> None:
    """Compute the stage unless it is done; when another run holds it, wait and take its answer.

    On failure `failed.json` says why, and the exception goes on to the caller. As a rank other than 0 it computes along.
    """
    if ranks.rank() > 0 and store.spec(job.folder).kind.apart:
        _help(job)
        return
    others = ranks.Others() if ranks.world_size() > 1 else None
    if others and ranks.rank() > 0:
        if others.wait():
            _compute_along(job, others)
        return
    with claims.claim(job.folder):
        record = None if store.done(job.folder) else _claimed(job, others)
        if record is None:
            if others:
                others.tell(go=False)
            return
        _remove_side_folders(job.folder)
        files = store.result_files(job.folder)
        _share(files, job.folder / records.SPEC)
        digests = file_digests.Memory(job.folder.parent).read(files)
        result = {
            "finished": time.time(),
            "digests": {str(path.relative_to(job.folder)): digests[path] for path in files},
            "sizes": {str(path.relative_to(job.folder)): path.stat().st_size for path in files},
        }
        plain = record.model_copy(update=result).model_dump(exclude_unset=True)
        store.write_json(job.folder / records.DONE, {**plain, "seal": damage.seal(plain)})
        twins.remember(job.folder)
        logger.info("done in %.1f s: %s", record.seconds, json.dumps(record.counts)[:2000])


def _share(files: list[Path], like: Path) -> None:
    """Let whoever may read `like` read these files too: safetensors 0.8 writes weights that only their owner may read, and a store
    is shared by a group."""
    readable = like.stat().st_mode & 0o666
    for path in files:
        with contextlib.suppress(PermissionError):  # linked from a stage that another person ran
            path.chmod(path.stat().st_mode | readable)


def _claimed(job: Job, others: ranks.Others | None) -> Done:
    """Compute a stage that this process holds, and return what `done.json` will say."""
    store.refuse_links(job.folder)
    for leftover in (job.folder / records.FAILED, job.folder / records.PROGRESS, *job.folder.glob("*.partial")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    spec = store.spec(job.folder)
    inputs = store.inputs(job.folder)
    started, worked = time.monotonic(), _processor_seconds()
    try:
        record = _skip(spec, inputs) or _taken_over(job.folder)
        if record is None:
            _check_inputs(spec, inputs, job)  # before the others are told: reading them may take a while
        if others:
            others.tell(go=record is None)
        if record and record.skipped and spec.kind.trains:
            policy.write_same(job.folder, inputs["policy"])  # what follows, a gate or the export, goes on with that
        if record is None:
            if others:
                others.join(job.machine)
            elif spec.kind.spread:
                ranks.join_alone(job.machine)
            elif spec.kind.apart:
                apart.go(job.folder)
            record = Done(status="done", counts=_compute(spec, inputs, job))
    except ranks.Stopped:
        raise
    except Exception as error:  # not an interruption: that is no failure, and the next run goes on
        _record_failure(job, error)
        raise
    seconds = {"seconds": round(time.monotonic() - started, 3), "cpu_seconds": round(_processor_seconds() - worked, 3)}
    return record.model_copy(update=seconds)


def _taken_over(folder: Path) -> Done | None:
    """Take the answer over that another stage has, whose key differs only by gates that let the same policy through."""
    twin = twins.find(folder)
    if twin is None:
        return None
    twins.take_over(twin, folder)
    logger.info("the same as %s, behind other gates", twin.name)
    return Done(status="done", counts=store.counts(twin), same_as=twin.name)


def _processor_seconds() -> float:
    """Return the processor time of this process and of those that it started and waited for: what a stage cost, however busy
    the machine was. Of several ranks, rank 0's."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _compute_along(job: Job, others: ranks.Others) -> None:
    """Do a rank's share of a stage that rank 0 holds."""
    try:
        others.join(job.machine)
        _compute(store.spec(job.folder), store.inputs(job.folder), job.model_copy(update={"wandb": None}))
    except ranks.Stopped:
        raise
    except Exception as error:
        _record_failure(job, error)
        raise


def _help(job: Job) -> None:
    """Do some of the blocks of a stage that rank 0 holds. Whatever ends this process, the stage goes on without it."""
    if apart.wait(job.folder):
        _compute(store.spec(job.folder), store.inputs(job.folder), job.model_copy(update={"wandb": None}))


def _check_inputs(spec: Spec, inputs: dict[str, Path], job: Job) -> None:
    """Refuse to begin on what is not finished, was edited, or is damaged: all bytes, once on this machine.

    A policy is read with all that it is made of, down to the model folder of the user's that it began with.
    """
    memory = file_digests.Memory(job.folder.parent)
    stages = {name: folder for name, folder in inputs.items() if spec.inputs[name].stage}
    for name, folder in stages.items():
        if not store.done(folder):
            raise UserError(f"input {name} ({folder.name}) is not finished; run the recipe again")
    _refuse_damaged(stages.values(), memory)
    for name, path in inputs.items():
        if name not in stages:
            _check_own(f"input {name}", path, spec.inputs[name], job)
    policies = [folder for folder in stages.values() if (folder / POLICY).is_file()]
    _refuse_damaged({part: None for folder in policies for part in policy.parts(folder)}, memory)
    for folder in policies:
        base = policy.chain(folder)[0]
        for name, entry in store.spec(base).inputs.items():
            if entry.path and policy.read(folder).weights == entry.path:
                _check_own(f"input {name} of {base.name}", Path(entry.path), entry, job)


def _refuse_damaged(folders: Iterable[Path], memory: file_digests.Memory) -> None:
    damages = [each for folder in folders for each in damage.full(folder, memory, store.spec(folder).name)]
    if damages:
        raise damage.told(damages)


def _check_own(name: str, path: Path, entry: Input, job: Job) -> None:
    if file_digests.asset(job.folder.parent, path, entry.patterns).digest != entry.digest:
        raise UserError(f"{name}: {path} has changed since the run was planned; run the recipe again")


def _compute(spec: Spec, inputs: dict[str, Path], job: Job) -> dict[str, Any]:
    where = f", rank {ranks.rank()} of {ranks.world_size()} on {ranks.node()}" if ranks.world_size() > 1 else ""
    logger.info("stage %s (%s) starts%s", spec.name, job.folder.name, where)
    with tracking.job(job.wandb, spec, job.folder):
        counts = code_of(spec.kind)(spec.record, inputs, job.folder, job.machine)
    if job.trials and spec.kind.trial:
        _imported(spec.kind.trial)(job.folder, job.trials, job.machine)
    ranks.barrier()  # what rank 0 removes when it is done, a slower rank may still read
    return counts


def _skip(spec: Spec, inputs: dict[str, Path]) -> Done | None:
    """A stage behind a gate that ended the rounds has nothing to do; it is finished as skipped, not failed."""
    if spec.after_stop:
        return None
    for name, folder in inputs.items():
        record = store.done(folder) if spec.inputs[name].stage else None
        if record and record.skipped:
            return Done(status=record.status, because=record.because)
        if record and record.counts.get("stops_rounds"):
            gate = store.spec(folder).name
            return Done(status="skipped", because=f"the rounds ended at {gate}: {record.counts['decision']}")
    return None


def _record_failure(job: Job, error: Exception) -> None:
    """Say why in `failed.json`. Of several ranks the first cause stays: the others mostly fail because of it."""
    known, lost = isinstance(error, UserError), ranks.is_lost_contact(error)
    first_line = str(error).splitlines()[0] if str(error) else "no message"
    text = str(error) if known else _out_of_memory(error) or f"{type(error).__name__}: {first_line}"
    failure = Failure(message=text, user_error=known)
    if ranks.world_size() > 1:
        named = text if known else f"rank {ranks.rank()} on {ranks.node()}: {text}"
        log = str(records.log_of(job.folder, ranks.rank()))
        failure = Failure(message=named, user_error=known, log=log, lost_contact=lost)
    before = store.failure(job.folder)
    if before and (lost or not (before.lost_contact or before.state)):
        return  # "state": by the batch script, when the time was nearly over
    try:
        store.write_failure(job.folder, failure)
    except OSError:  # the disk is full, perhaps: the caller still hears of the first error
        logger.error("could not write %s", job.folder / records.FAILED)


def _out_of_memory(error: Exception) -> str | None:
    cuda, text = type(error).__name__ == "OutOfMemoryError", str(error)
    if not (cuda or isinstance(error, MemoryError) or "DefaultCPUAllocator" in text):
        return None
    return (
        f"out of {'GPU ' if cuda else ''}memory: lower micro_batch_size, set activation_checkpointing: true, or shard more "
        f"(deepspeed, more processes) in the cluster file ({text.splitlines()[0][:200] if text else 'no message'})"
    )


def _remove_side_folders(folder: Path) -> None:
    for name in ("checkpoints", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)


def main(job: Job) -> None:
    """Entry of a fresh process: everything printed goes to the stage's log, and the exit code tells the outcome."""
    log = records.log_of(job.folder, ranks.rank())
    log.parent.mkdir(exist_ok=True)
    write_to(log)
    # Libraries read what lies in the current folder: a folder `org/name` instead of that model or set of the hub, a matplotlibrc.
    os.chdir(job.folder)
    if ranks.world_size() == 1 and job.machine.device_map is None:
        # One process uses one GPU: of several, Trainer would make replicas.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        run(job)
        ranks.leave()
    except ranks.Stopped as stopped:
        logger.info("%s", stopped)
        _exit(ranks.EXIT_STOPPED)
    except BaseException as error:
        logger.error("%s", error if isinstance(error, UserError) else traceback.format_exc())
        _exit(1)


def _exit(code: int) -> None:
    """End this process. A rank does not tidy up: taking down a group whose other ranks are gone can hang."""
    if ranks.world_size() == 1:
        sys.exit(code)
    logging.shutdown()
    os._exit(code)


def write_to(log: Path) -> None:
    """Send this process's output, its libraries' and its children's to the log file."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)


def end_with_parent() -> None:
    """Leave at once when the process that started this one is gone: an orphan would hold the stage against the next run."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    main(Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
