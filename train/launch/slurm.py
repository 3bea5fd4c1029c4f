"""Send a plan to SLURM: one job per stage that is not done, chained so that each starts when what it needs is done.

Nothing stays running here. What was submitted is written beside each stage (`slurm/job.json`: the job's id and the runs that want
it), so any later command, on any machine that sees the store, knows the jobs again.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.train.config import slurm
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.engine import claims as stage_claims
from rounds.train.engine import ranks, store, worker
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.params import Trial
from rounds.train.engine.records import JOB, SPEC
from rounds.train.launch import preflight, queue, script, submission
from rounds.train.launch.queue import Job
from rounds.train.launch.submission import Submission
from rounds.train.weights import requirements

_SETTLE_SECONDS = 20
_PREFLIGHT_TIME = "00:20:00"
"""Long enough to import torch from a cold shared file system on every node; short, so that it is scheduled soon."""


@dataclass(frozen=True)
class Run:
    """What jobs are submitted for. Two plans of one recipe that differ in a stage are two runs."""

    name: str
    last: Stage
    recipe: str
    cluster: str
    wandb: dict[str, str | None] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment of every job besides the cluster file's: where fetched files are, for a run without the hub."""
    more: tuple[str, ...] = ()
    """Options that the command was given besides, for whoever is told how to go on."""
    trials: Mapping[str, tuple[Trial, ...]] = field(default_factory=dict)
    """What is tried out where a model begins, by that stage's key."""

    @property
    def id(self) -> str:
        """Name the run by its recipe and by its last stage's key, in which all others are."""
        return f"{self.name}:{self.last.key}"


@dataclass(frozen=True)
class Entry:
    """What became of one stage: it is `done`, was `queued` before, is `submitted` now, or `would` be (a dry run)."""

    stage: Stage
    what: str
    machine: Machine
    job: str | None = None
    waits_for: tuple[str, ...] = ()
    refused: str | None = None
    """Why SLURM would not take the script, as far as a dry run could ask."""
    outdated: bool = False
    """Queued with a `row` that is not what the cluster file says now."""

    @property
    def gpu_hours(self) -> float:
        """Upper bound of one attempt: every GPU for the whole time limit. CPU stages cost none."""
        return self.nodes * self.machine.slurm.gpus * self.machine.slurm.hours

    @property
    def nodes(self) -> int:
        """How many nodes the stage takes."""
        return ranks.processes(self.stage.kind, self.machine)[0]


@dataclass
class Chain:
    """The jobs of one submission so far, by stage key, and its lanes.

    A lane is a row of jobs of which each waits for all before it, so no more jobs run at once than there are lanes. For the
    last of them alone would not do: it may be cancelled, because a stage that it needs has failed, while another still runs.
    """

    bound: int | None = None
    """How many lanes there may be; None sets no bound."""
    jobs: dict[str, str] = field(default_factory=dict)
    submitted: int = 0
    left: int = 0
    """Stages that have no job yet."""
    lanes: list[list[str]] = field(default_factory=list)
    before: dict[str, set[str]] = field(default_factory=dict)
    """Every job that must end well before a job may start, by job."""
    checks: list[str] = field(default_factory=list)
    """Jobs before all others."""

    def needs(self, stage: Stage) -> tuple[str, ...]:
        """Return the jobs that a stage must wait for: of its parents, those that no other of them waits for anyway."""
        parents = dict.fromkeys(self.jobs[parent.key] for parent in stage.parents if parent.key in self.jobs)
        parents = parents or dict.fromkeys(self.checks)
        implied = set[str]().union(*(self.before[parent] for parent in parents))
        return tuple(parent for parent in parents if parent not in implied)

    def behind(self, waits_for: Sequence[str]) -> list[str]:
        """Return the lane that a new job goes on with; empty is a new lane. One whose last job it waits for costs nothing."""
        lanes = sorted(self.lanes, key=lambda lane: lane[-1] not in waits_for)
        full = self.bound is not None and len(lanes) >= self.bound
        return lanes[0] if lanes and (full or lanes[0][-1] in waits_for) else []

    def narrow(self) -> None:
        """Where jobs that were queued before have more lanes than there may be now, let what is new wait for those too many."""
        many = max(0, len(self.lanes) - self.bound) if self.bound else 0
        self.lanes = [[*itertools.chain(*self.lanes[:many]), *lane] for lane in self.lanes[many:]]

    def note(self, key: str, job: str, waits_for: Sequence[str]) -> None:
        """Note the job of a stage, and what it waits for."""
        self.jobs[key] = job
        self.before[job] = set(waits_for).union(*(self.before[parent] for parent in waits_for))

    def take_lane(self, job: str, behind: list[str]) -> None:
        """Note a job at the end of a lane, or of a new one, which is then the lane that was used last."""
        self.lanes = [lane for lane in self.lanes if lane != behind] + [[*behind, job]]


def submit(
    stages: Sequence[Stage],
    root: Path,
    cluster: Cluster,
    run: Run,
    lanes: int | None = None,
    checks: Sequence[Stage] = (),
) -> list[Entry]:
    """Submit a job for each stage that is neither done nor in the queue, parents first, and return what became of each.

    `lanes` bounds how many of the jobs run at once. `checks` are stages of `rounds.train.launch.preflight` that all others wait for.
    Raises `UserError` where SLURM refuses a job; those before it stay submitted, and the same call goes on from there.
    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    with stage_claims.turn(root):
        return _submit(stages, root, cluster, run, lanes, checks)


def _with_trials(run: Run, stages: Sequence[Stage], cluster: Cluster) -> Run:
    return replace(run, trials={stage.key: requirements.trials(stage, stages, cluster) for stage in stages if stage.kind.starts})


def _submit(stages: Sequence[Stage], root: Path, cluster: Cluster, run: Run, lanes: int | None, checks: Sequence[Stage]) -> list[Entry]:
    run = _with_trials(run, stages, cluster)
    known = live_jobs([*checks, *stages], root)
    done = {stage.key for stage in stages if store.done(store.folder(root, stage))}
    if all(stage.key in known or stage.key in done for stage in stages):
        checks = ()
    claims = _take_back(stages, root, known, done)
    chain = Chain(lanes, left=sum(stage.key not in known and stage.key not in done for stage in (*checks, *stages)))
    for stage in (*checks, *stages):  # all of them first: what is new must keep to what runs already
        if stage.key in known and stage.key not in done:
            _keep_lane(store.folder(root, stage), known[stage.key].id, chain)
    chain.narrow()

    def entry(stage: Stage) -> Entry:
        if stage.key not in done or any(isinstance(source, Asset) for source in stage.inputs.values()):
            store.prepare(root, stage, cluster.store_access)  # done or not: where the user's files are now is read from here
        machine = row_of(stage, cluster)
        if stage.key in done:
            return Entry(stage, "done", machine)
        if stage.key in known:
            return _queued(stage, store.folder(root, stage), machine, known[stage.key].id, chain, run)
        return _submitted(stage, root, machine, chain, run, claims.get(stage.key, ()), checks)

    first = [entry(check) for check in checks]
    chain.checks = list(chain.jobs.values())
    return first + [entry(stage) for stage in stages]


def _take_back(stages: Sequence[Stage], root: Path, known: dict[str, Job], done: set[str]) -> dict[str, tuple[str, ...]]:
    """Cancel jobs that wait for one that is gone, not for the one that will take its place, and forget them in `known`.

    Returns the runs that wanted them, by stage key.
    """
    claims: dict[str, tuple[str, ...]] = {}
    new: set[str] = set()
    for stage in stages:
        job = known.get(stage.key)
        if stage.key in done:
            continue
        if job is None:
            new.add(stage.key)
        elif job.state == "PENDING" and new.intersection(parent.key for parent in stage.parents):
            new.add(stage.key)
            claims[stage.key] = _runs_that_want(store.folder(root, stage), job.id)
    queue.cancel([known.pop(key).id for key in claims])
    return claims


def _keep_lane(folder: Path, job: str, chain: Chain) -> None:
    """Give a job that is in the queue already its place: behind those that it was put behind, else in a lane of its own."""
    lanes = {lane[-1]: lane for lane in chain.lanes}
    known = submission.read_of(folder, job)
    put = reversed(known.behind) if known else ()
    chain.take_lane(job, next((lanes[tail] for tail in put if tail in lanes), []))


def _queued(stage: Stage, folder: Path, machine: Machine, job: str, chain: Chain, run: Run) -> Entry:
    """Take a job that is in the queue already into the chain, and note that this run wants it too."""
    waits_for = chain.needs(stage)
    chain.note(stage.key, job, waits_for)
    known = submission.read_of(folder, job) or Submission(id=job)
    if run.id not in known.runs:
        submission.write(folder, _wanted_by(run, known))
    return _as_it_was(Entry(stage, "queued", machine, job, waits_for), known)


def _as_it_was(entry: Entry, known: Submission) -> Entry:
    """Show a queued stage with the row that its job was submitted with."""
    then = known.machine or entry.machine
    return replace(entry, machine=then, outdated=then != entry.machine)


def _submitted(
    stage: Stage, root: Path, machine: Machine, chain: Chain, run: Run, claims: tuple[str, ...], checks: Sequence[Stage]
) -> Entry:
    """Write a stage's script, submit it behind what it needs, and note its id beside it, for the runs that want it."""
    if stage in checks:
        preflight.reset(store.folder(root, stage))
    waits_for = chain.needs(stage)
    written = write_script(stage, root, machine, run)
    behind = chain.behind(waits_for)
    before = [job for job in behind if job not in waits_for]
    whatever = stage.kind.compares  # comes when all others have ended, well or not
    try:
        number = queue.submit(written, (), list(chain.jobs.values())) if whatever else queue.submit(written, waits_for, before)
    except UserError as error:
        raise UserError(
            f"{stage.name}: {error} (script: {written}). {chain.submitted} jobs were submitted before it and stay, {chain.left} are "
            "left; the same command goes on from here"
        ) from None
    made = Submission(
        id=number,
        name=script.job_name(run.name, stage.name),
        runs=claims,
        checks=() if stage in checks else tuple(check.folder_name for check in checks),
        behind=tuple(behind),
        machine=machine,
    )
    submission.write(store.folder(root, stage), _wanted_by(run, made))
    chain.note(stage.key, number, waits_for)
    chain.take_lane(number, behind)
    chain.submitted += 1
    chain.left -= 1
    return Entry(stage, "submitted", machine, number, waits_for)


def checks_of(stages: Sequence[Stage], root: Path) -> list[Stage]:
    """Return the checks that the last submission of these stages put before them."""
    known = [submission.read(store.folder(root, stage)) for stage in stages]
    names = dict.fromkeys(name for each in known if each for name in each.checks)
    specs = [store.spec(root / name) for name in names if (root / name / SPEC).exists()]
    return [Stage(spec.name, spec.kind, spec.record, stored_version=spec.version) for spec in specs]


def rehearse(stages: Sequence[Stage], root: Path, cluster: Cluster, run: Run, checks: Sequence[Stage] = ()) -> list[Entry]:
    """Write every script that would be submitted, and ask SLURM, where there is one, whether it would take it."""
    root = root.resolve()
    run = _with_trials(run, stages, cluster)
    answers = queue.available()
    known = live_jobs([*checks, *stages], root) if answers else {}
    entries = []
    for stage in (*checks, *stages):
        machine = row_of(stage, cluster)
        if store.done(store.folder(root, stage)) and stage not in checks:
            entries.append(Entry(stage, "done", machine))
        elif stage.key in known:
            job = known[stage.key].id
            entries.append(
                _as_it_was(Entry(stage, "queued", machine, job), submission.read_of(store.folder(root, stage), job) or Submission(id=job))
            )
        else:
            written = write_script(stage, root, machine, run)
            refused = queue.test(written) if answers else None
            entries.append(Entry(stage, "would", machine, refused=refused))
    return entries


def fits(pattern: str, stage: Stage) -> bool:
    """Tell whether a name or pattern under `stages` of a cluster file means this stage."""
    return fnmatchcase(stage.name, pattern)


def row_of(stage: Stage, cluster: Cluster) -> Machine:
    """Return the row of a stage, checked for what its processes need."""
    machine = cluster.machine(stage.row, stage.name)
    if stage.kind.checks and not any(fits(pattern, stage) for pattern in cluster.stages):
        quick = {"time": _PREFLIGHT_TIME, "signal_seconds": 60}
        machine = machine.model_copy(update={"slurm": machine.slurm.model_copy(update=quick)})
    slurm.check(machine.slurm, f"stage {stage.name}", ranks.processes(stage.kind, machine)[1])
    return machine


def write_script(stage: Stage, root: Path, machine: Machine, run: Run) -> Path:
    """Prepare a stage's folder with all that its job reads; returns the script."""
    if any(mark in str(root) for mark in '"\\') or not str(root).isprintable():
        raise UserError(f"the store {str(root)!r} has a quote, backslash or line break in its path, which sbatch cannot take")
    folder = store.prepare(root, stage)
    (folder / "slurm").mkdir(exist_ok=True)
    job = worker.Job(folder=folder, machine=machine, wandb=run.wandb, trials=run.trials.get(stage.key, ()))
    store.write_json(folder / JOB, job.model_dump(mode="json", exclude={"machine": {"slurm"}}))
    path = folder / "slurm" / "job.sh"
    path.write_text(script.render(run.name, stage, folder, machine, run.variables), encoding="utf-8")
    return path


def live_jobs(stages: Sequence[Stage], root: Path) -> dict[str, Job]:
    """Return the jobs in the queue, by stage key. Waits a moment for jobs that are just leaving it.

    Also found are jobs of this user whose submission was cut off before their id was written down.
    """
    comments = {stage.key: script.comment(store.folder(root, stage)) for stage in stages}
    noted = {known.id: (stage.key, known.name) for stage in stages if (known := submission.read(store.folder(root, stage)))}

    def key_of(job: Job) -> str | None:
        key, name = noted.get(job.id, (None, None))
        if key and job.carries(comments[key], name):
            return key
        return next((key for key, comment in comments.items() if job.carries(comment)), None)

    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        found = [*queue.jobs(mine=True).values(), *queue.jobs(noted).values()]
        ours = {key: job for job in found if job.live and (key := key_of(job))}
        if time.monotonic() > deadline or not any(job.state == "COMPLETING" for job in ours.values()):
            return ours
        time.sleep(1)


def cancel(stages: Sequence[Stage], root: Path, run: str, shared: bool = False) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Cancel the jobs of one run. Returns the ids, and those left because other runs want them too, with those runs.

    With `shared` those are cancelled as well.
    """
    root = root.resolve()
    if not root.is_dir():
        return [], []
    with stage_claims.turn(root):
        return _cancel([*checks_of(stages, root), *stages], root, run, shared)


def _cancel(stages: Sequence[Stage], root: Path, run: str, shared: bool) -> tuple[list[str], list[tuple[str, list[str]]]]:
    ids, left = [], []
    for key, job in live_jobs(stages, root).items():
        folder = next(store.folder(root, stage) for stage in stages if stage.key == key)
        if store.done(folder):  # it is leaving the queue by itself
            continue
        known = submission.read(folder) or Submission(id=job.id, runs=(run,))
        others = [name for name in known.runs if name != run]
        if run not in known.runs and not shared:
            left.append((job.id, others))
        elif others and not shared:
            submission.keep(folder, known.model_copy(update={"runs": tuple(others)}))
            left.append((job.id, others))
        else:
            ids.append(job.id)
    queue.cancel(ids)
    return ids, left


def other_plans(name: str, stages: Sequence[Stage], root: Path) -> list[str]:
    """Return jobs in the queue that a plan of the same recipe with other settings wants, and this one does not."""
    ours = {stage.folder_name for stage in stages}
    wanted = {
        known.id: (script.comment(folder), known.name)
        for folder in submission.folders(root)
        if folder.name not in ours and (known := submission.read(folder))
        if any(run.rpartition(":")[0] == name for run in known.runs)
    }
    return [job.id for job in queue.jobs(wanted).values() if job.live and job.carries(*wanted[job.id])]


def _runs_that_want(folder: Path, job: str) -> tuple[str, ...]:
    known = submission.read_of(folder, job)
    return known.runs if known else ()


def _wanted_by(run: Run, known: Submission) -> Submission:
    """Add a run to those that want a job, and the command of it for whoever is told how to go on."""
    told = {"recipe": run.recipe, "cluster": run.cluster, "more": run.more}
    return known.model_copy(update={"runs": tuple(dict.fromkeys([*known.runs, run.id])), **told})
