"""What has become of each stage of a plan, from its folder and from SLURM, and why the ones that ended badly did.

Works without SLURM (the folder alone tells), without its accounting (the queue remembers finished jobs for a while, the folder
for ever), and from any machine that sees the store.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rounds.data_prep import progress
from rounds.data_prep.errors import UserError
from rounds.train.engine import claims, damage, store
from rounds.train.engine.digests import Memory
from rounds.train.engine.graph import Stage
from rounds.train.engine.records import HOLDER, Failure, log_of
from rounds.train.launch import failures, queue, script, slurm, submission
from rounds.train.launch.queue import Job

ENDED_BADLY = ("failed", "cancelled", "time limit", "preempted", "out of memory", "node failed", "port taken", "ended", "damaged")
_FINAL = {
    "FAILED": "failed",
    "BOOT_FAIL": "node failed",
    "NODE_FAIL": "node failed",
    "CANCELLED": "cancelled",
    "PREEMPTED": "preempted",
    "REVOKED": "cancelled",
    "DEADLINE": "time limit",
    "TIMEOUT": "time limit",
    "OUT_OF_MEMORY": "out of memory",
}
_ATTEMPT = re.compile(r"^-- attempt \d+ of job .*--$", re.MULTILINE)
"""The first line of every attempt's output; all go to one file."""
_NOTHING_SAID = "its script ended without finishing the stage"
_MEMORY = re.compile(r"oom.kill|Out Of Memory|out of memory|Cannot allocate memory|DefaultCPUAllocator")


@dataclass(frozen=True)
class State:
    """One stage as it stands. `state` is a word for a person; `done` and `failed.json` say more than SLURM does."""

    stage: Stage
    folder: Path
    state: str
    job: Job | None = None
    because: str = ""

    @property
    def progress(self) -> dict | None:
        """How far a stage at work is."""
        return progress.read(self.folder) if self.state == "running" else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end of a stage at work."""
        return progress.seconds_left(self.progress) if self.progress else None


def states(stages: Sequence[Stage], root: Path) -> list[State]:
    """Say how each stage stands, after the checks that were put before them."""
    checks = slurm.checks_of(stages, root)
    stages = [*checks, *stages]
    jobs = _jobs([store.folder(root, stage) for stage in stages])
    found: dict[str, State] = {}
    memory = Memory(root)
    for stage in stages:
        folder = store.folder(root, stage)
        # Where all its parents were done, a stage waited for the checks alone.
        before = [] if stage in checks else [each.key for each in (*stage.parents, *checks)]
        wrong = damage.quick(folder, memory, stage.name)
        found[stage.key] = (
            State(stage, folder, "damaged", None, f"{wrong[0].file} {wrong[0].says}; `rounds verify` says what mends it")
            if wrong
            else _state(stage, folder, jobs.get(folder), [found[key] for key in before if key in found])
        )
    return list(found.values())


def _jobs(folders: Sequence[Path]) -> dict[Path, Job]:
    """Look up the jobs that were submitted for these folders."""
    known = {folder: entry for folder in folders if (entry := submission.read(folder))}
    if not known:
        return {}
    silence = queue.silence()  # the accounting may answer where the controller does not
    queued: dict[str, Job] = {}
    try:
        queued = {} if silence else queue.jobs(entry.id for entry in known.values())
    except UserError as error:
        silence = str(error)
    now = {
        folder: job for folder, entry in known.items() if (job := queued.get(entry.id)) and job.carries(script.comment(folder), entry.name)
    }
    gone = queue.past({entry.id: (entry.name, script.comment(folder)) for folder, entry in known.items() if folder not in now})
    return {folder: now.get(folder) or gone.get(entry.id) or Job(entry.id, "UNKNOWN", silence or "") for folder, entry in known.items()}


def _state(stage: Stage, folder: Path, job: Job | None, parents: list[State]) -> State:
    record = store.done(folder)
    if record:
        return State(stage, folder, record.status, job, record.because)
    if job and job.live:
        return State(stage, folder, *_in_queue(job, folder))
    if claims.is_held(folder):
        return State(stage, folder, "running", None, f"by {claims.holder(folder)}")
    failure = store.failure(folder)
    if failure and not (failure.lost_contact and job and _FINAL.get(job.state, "failed") != "failed"):
        # else SLURM ended it, and the ranks saw each other go
        how = _killed(folder, job.id) if job and _given_up(failure) else None
        because = f"{failure.message}{f'. Before that {how}' if how else ''}"
        return State(stage, folder, failure.state or "failed", job, because)
    bad = next((each for each in parents if each.state in ENDED_BADLY or each.because.startswith("behind ")), None)
    origin = bad and (bad.because.removeprefix("behind ") if bad.because.startswith("behind ") else bad.stage.name)
    if job and job.state == "UNKNOWN" and job.reason:
        return State(stage, folder, "not known", job, f"SLURM does not answer: {job.reason}")
    if job is None:
        before = "started before" if (log_of(folder, 0)).exists() else ""
        return State(stage, folder, "to do", None, f"behind {origin}" if origin else before)
    if bad and not started(folder, job):
        return State(stage, folder, "cancelled", job, f"behind {origin}")
    return State(stage, folder, *ended(job, folder))


def started(folder: Path, job: Job) -> bool:
    """Tell whether a job ever got as far as its script."""
    return (folder / "slurm" / f"{job.id}.txt").exists()


def _in_queue(job: Job, folder: Path) -> tuple[str, Job, str]:
    if job.state == "RUNNING":
        return ("running" if (folder / HOLDER).exists() else "starting"), job, ""
    if job.state in ("COMPLETING", "CONFIGURING"):
        return job.state.lower(), job, ""
    if re.search(r"JobHeld|JobHold|requeued held", job.reason):
        return "held", job, f"{job.reason}: `scontrol release {job.id}` lets it go on"
    reason = {"None": "", "BeginTime": "about to be started again"}.get(job.reason, job.reason)
    return "waiting", job, reason


def ended(job: Job, folder: Path) -> tuple[str, Job, str]:
    """Say why a job is gone without a word in `failed.json`."""
    state = _FINAL.get(job.state, "ended")
    if _MEMORY.search(_attempts(folder, job.id)[-1]):
        state = "out of memory"
    because = {
        "time limit": "its time was over before it had saved: raise `time`, or `signal_seconds` so that a step and a checkpoint fit",
        "out of memory": "raise `memory` in the cluster file (this is the node's memory, not the GPU's)",
        "node failed": "the node went away, and the job was not requeued",
        "cancelled": "by scancel" if started(folder, job) else "before it began",
        "preempted": "a job that goes before it took its node, and its partition does not requeue: the same command goes on from here",
        "failed": _killed(folder, job.id) or _not_launched(folder, job) or _NOTHING_SAID,
        "ended": f"SLURM no longer knows job {job.id}",
    }.get(state, _NOTHING_SAID)
    return state, job, because


def _attempts(folder: Path, job: str) -> list[str]:
    """Return what the last attempts of a job printed, the latest last."""
    return _ATTEMPT.split("\n".join(last_lines(folder / "slurm" / f"{job}.txt", 150)))


def _killed(folder: Path, job: str) -> str | None:
    """Say how the latest attempt of which a process was ended by a signal came to that."""
    for printed in reversed(_attempts(folder, job)):
        rank = failures.killed_rank(printed)
        how = rank[1] if rank else failures.first_task(printed)
        if how:
            return how
    return None


def _not_launched(folder: Path, job: Job) -> str | None:
    """Say which node could not even begin, where SLURM says so. Its slurmd opens the output before the script runs."""
    if job.reason != "JobLaunchFailure" and started(folder, job):
        return None
    where = f"node {job.nodes}" if job.nodes else "its node"
    return f"{where} could not start its script ({job.reason or 'no reason given'}): does it see {folder}, and may you write there?"


def _given_up(failure: Failure) -> bool:
    """Tell whether the batch script gave a stage up after too many restarts: what ended those is in its own output."""
    return failure.state == "failed"


def right_log(folder: Path) -> Path:
    """Return the log that tells most: that of the rank that failed first, the stage's own, or what the batch script printed."""
    failure = store.failure(folder)
    printed = sorted((folder / "slurm").glob("*.txt"), key=lambda path: path.stat().st_mtime)
    log = Path(failure.log) if failure and failure.log else log_of(folder, 0)
    if not printed:
        return log
    if failure and _given_up(failure):
        return printed[-1]
    if failure and log.exists():
        return log
    newer = log.exists() and log.stat().st_mtime >= printed[-1].stat().st_mtime
    return log if newer else printed[-1]


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a file that need not exist; of a long one only its end is read."""
    try:
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - 400 * count)
            file.seek(start)
            end = file.read()
    except FileNotFoundError:
        return []
    rest = end.partition(b"\n")[2] if start else b""  # without the part of a line that it begins with
    text = (rest or end).decode(errors="replace")
    return [line.rpartition("\r")[2] for line in text.splitlines()][-count:]
