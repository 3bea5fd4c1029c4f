"""Send a plan to SLURM: one job per stage that is not done, chained so that each starts when what it needs is done.

Nothing stays running here. What was submitted is written beside each stage (`slurm/job.json`: the job's id and the runs that want
it), so any later command, on any machine that sees the store, knows the jobs again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from train import ranks, resources, store, worker
from train.cluster import Cluster, Row
from train.graph import Asset, Stage
from train.launch import preflight, queue, script
from train.launch.queue import Job

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
    at_the_end: tuple[str, ...] = ()
    """Arguments of `rounds` that the last stage's job runs in place of the stage, when all others have ended, well or not."""

    @property
    def id(self) -> str:
        """Name the run by its recipe and by its last stage's key, in which all others are."""
        return f"{self.name}:{self.last.key}"


@dataclass(frozen=True)
class Entry:
    """What became of one stage: it is `done`, was `queued` before, is `submitted` now, or `would` be (a dry run)."""

    stage: Stage
    what: str
    row: Row
    job: str | None = None
    waits_for: tuple[str, ...] = ()
    refused: str | None = None
    """Why SLURM would not take the script, as far as a dry run could ask."""

    @property
    def gpu_hours(self) -> float:
        """Upper bound of one attempt: every GPU for the whole time limit. CPU stages cost none."""
        return self.nodes * self.row.slurm.gpus * self.row.slurm.hours

    @property
    def nodes(self) -> int:
        """How many nodes the stage takes."""
        return ranks.processes(self.stage.function, self.row)[0]


@dataclass
class Chain:
    """The jobs of one submission so far, by stage key, and the tails of its lanes."""

    jobs: dict[str, str] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)
    lanes: list[str] = field(default_factory=list)
    before: dict[str, set[str]] = field(default_factory=dict)
    """Every job that ends before a job may start, by job."""
    checks: list[str] = field(default_factory=list)
    """Jobs before all others."""

    def needs(self, stage: Stage) -> tuple[str, ...]:
        """Return the jobs that a stage must wait for: of its parents, those that no other of them waits for anyway."""
        parents = dict.fromkeys(self.jobs[parent.key] for parent in stage.parents if parent.key in self.jobs)
        parents = parents or dict.fromkeys(self.checks)
        implied = set[str]().union(*(self.before[parent] for parent in parents))
        return tuple(parent for parent in parents if parent not in implied)

    def lane(self, parents: Sequence[str], lanes: int | None) -> list[str]:
        """Return the job after which a new one may start so that no more than `lanes` run at once.

        A lane whose last job is a parent costs nothing, since the new job waits for that one anyway.
        """
        behind_parent = [tail for tail in self.lanes if tail in parents]
        if behind_parent:
            return behind_parent[:1]
        return [] if lanes is None or len(self.lanes) < lanes else self.lanes[:1]

    def note(self, key: str, job: str, waits_for: Sequence[str]) -> None:
        """Note the job of a stage, and what it waits for."""
        self.jobs[key] = job
        self.before[job] = set(waits_for).union(*(self.before[parent] for parent in waits_for))

    def take_lane(self, key: str, job: str, behind: list[str]) -> None:
        """Note that a job was submitted; its lane is then the one that was used last."""
        self.new.add(key)
        self.lanes = [tail for tail in self.lanes if tail not in behind] + [job]


def submit(
    stages: Sequence[Stage],
    root: Path,
    cluster: Cluster,
    run: Run,
    lanes: int | None = None,
    checks: Sequence[Stage] = (),
) -> list[Entry]:
    """Submit a job for each stage that is neither done nor in the queue, parents first, and return what became of each.

    `lanes` bounds how many of the jobs run at once. `checks` are stages of `train.launch.preflight` that all others wait for.
    Raises `UserError` where SLURM refuses a job; those before it stay submitted, and the same call goes on from there.
    """
    root = root.resolve()
    known = live_jobs([*checks, *stages], root)
    chain = Chain()
    entries = []
    if not any(stage.key not in known and not store.done(store.folder(root, stage)) for stage in stages):
        checks = ()
    for check in checks:
        folder, row = store.folder(root, check), row_of(check, cluster)
        if check.key in known:
            entries.append(_queued(check, folder, row, known[check.key].id, chain, run, ()))
        else:
            preflight.reset(folder)
            entries.append(_submitted(check, root, row, chain, run, lanes=None, checks=()))
    chain.checks = [entry.job for entry in entries if entry.job]
    for stage in stages:
        folder, row = store.folder(root, stage), row_of(stage, cluster)
        if any(isinstance(source, Asset) for source in stage.inputs.values()):
            store.prepare(root, stage)  # done or not: where the user's files are now is read from here
        job = known.get(stage.key)
        if store.done(folder):
            entries.append(Entry(stage, "done", row))
            continue
        waits_for = chain.needs(stage)
        if job and job.state == "PENDING" and chain.new.intersection(parent.key for parent in stage.parents):
            queue.cancel([job.id])  # it waits for a job that is gone, not for the new one
            job = None
        if job:
            entries.append(_queued(stage, folder, row, job.id, chain, run, waits_for))
        else:
            entries.append(_submitted(stage, root, row, chain, run, lanes, checks))
    return entries


def _queued(
    stage: Stage, folder: Path, row: Row, job: str, chain: Chain, run: Run, waits_for: tuple[str, ...]
) -> Entry:
    """Take a job that is in the queue already into the chain, and note that this run wants it too."""
    chain.note(stage.key, job, waits_for)
    known = record(folder)
    runs = known["runs"] if known and known["id"] == job else []
    if run.id not in runs:
        _remember(folder, job, [*runs, run.id], run, known["checks"] if known else [])
    return Entry(stage, "queued", row, job, waits_for)


def _submitted(
    stage: Stage, root: Path, row: Row, chain: Chain, run: Run, lanes: int | None, checks: Sequence[Stage]
) -> Entry:
    """Write a stage's script, submit it behind what it needs, and note its id beside it."""
    waits_for = chain.needs(stage)
    written = write_script(stage, root, row, run)
    behind = chain.lane(waits_for, lanes)
    only_lane = [job for job in behind if job not in waits_for]
    whatever = run.at_the_end and stage.key == run.last.key
    try:
        number = queue.submit(written, *(((), (*waits_for, *only_lane)) if whatever else (waits_for, only_lane)))
    except UserError as error:
        raise UserError(
            f"{stage.name}: {error} (script: {written}). {len(chain.new)} jobs were submitted before it and stay; the same "
            "command goes on from here"
        ) from None
    _remember(store.folder(root, stage), number, [run.id], run, [check.folder_name for check in checks])
    chain.note(stage.key, number, waits_for)
    chain.take_lane(stage.key, number, behind)
    return Entry(stage, "submitted", row, number, waits_for)


def checks_of(stages: Sequence[Stage], root: Path) -> list[Stage]:
    """Return the checks that the last submission of these stages put before them."""
    names = [name for stage in stages for name in (record(store.folder(root, stage)) or {}).get("checks", ())]
    specs = [store.spec(root / name) for name in dict.fromkeys(names) if (root / name / "stage.json").exists()]
    return [Stage(spec["name"], spec["function"], spec["params"], row=spec["params"]["row"]) for spec in specs]


def rehearse(
    stages: Sequence[Stage], root: Path, cluster: Cluster, run: Run, checks: Sequence[Stage] = ()
) -> list[Entry]:
    """Write every script that would be submitted, and ask SLURM, where there is one, whether it would take it."""
    root = root.resolve()
    answers = queue.available()
    known = live_jobs(stages, root) if answers else {}
    entries = []
    for stage in (*checks, *stages):
        row = row_of(stage, cluster)
        if store.done(store.folder(root, stage)) and stage not in checks:
            entries.append(Entry(stage, "done", row))
        elif stage.key in known:
            entries.append(Entry(stage, "queued", row, known[stage.key].id))
        else:
            written = write_script(stage, root, row, run)
            refused = queue.test(written) if answers else None
            entries.append(Entry(stage, "would", row, refused=refused))
    return entries


def fits(pattern: str, stage: Stage) -> bool:
    """Tell whether a name or pattern under `stages` of a cluster file means this stage."""
    return fnmatchcase(stage.name, pattern)


def row_of(stage: Stage, cluster: Cluster) -> Row:
    """Return the row of a stage, checked for what its processes need."""
    row = cluster.row(stage.row, stage.name)
    if stage.function == "preflight" and not any(fits(pattern, stage) for pattern in cluster.stages):
        quick = {"time": _PREFLIGHT_TIME, "signal_seconds": 60}
        row = row.model_copy(update={"slurm": row.slurm.model_copy(update=quick)})
    resources.check(row.slurm, f"stage {stage.name}", ranks.processes(stage.function, row)[1])
    return row


def write_script(stage: Stage, root: Path, row: Row, run: Run) -> Path:
    """Prepare a stage's folder with all that its job reads; returns the script."""
    if any(mark in str(root) for mark in '"\\') or not str(root).isprintable():
        raise UserError(
            f"the store {str(root)!r} has a quote, backslash or line break in its path, which sbatch cannot take"
        )
    folder = store.prepare(root, stage)
    (folder / "slurm").mkdir(exist_ok=True)
    job = worker.Job(folder=folder, row=row, wandb=run.wandb)
    store.write_json(folder / "job.json", job.model_dump(mode="json", exclude={"row": {"slurm"}}))
    at_the_end = run.at_the_end if stage.key == run.last.key else ()
    if at_the_end:
        (folder / "slurm" / "arguments").write_text("\0".join(at_the_end), encoding="utf-8")
    path = folder / "slurm" / "job.sh"
    text = script.render(run.name, stage, folder, row, run.variables, instead=bool(at_the_end))
    path.write_text(text, encoding="utf-8")
    return path


def record(folder: Path) -> dict[str, Any] | None:
    """Return what is known of a stage's last submission: id, runs, recipe, cluster, submitted."""
    return store.read_json(folder / "slurm" / "job.json")


def live_jobs(stages: Sequence[Stage], root: Path) -> dict[str, Job]:
    """Return the jobs in the queue, by stage key. Waits a moment for jobs that are just leaving it.

    Also found are jobs of this user whose submission was cut off before their id was written down.
    """
    folders = {script.comment(store.folder(root, stage)): stage.key for stage in stages}
    numbers = [known["id"] for stage in stages if (known := record(store.folder(root, stage)))]
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        found = [*queue.jobs(mine=True).values(), *queue.jobs(numbers).values()]
        ours = {folders[job.comment]: job for job in found if job.live and job.comment in folders}
        if time.monotonic() > deadline or not any(job.state == "COMPLETING" for job in ours.values()):
            return ours
        time.sleep(1)


def cancel(
    stages: Sequence[Stage], root: Path, run: str, shared: bool = False
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Cancel the jobs of one run. Returns the ids, and those left because other runs want them too, with those runs.

    With `shared` those are cancelled as well.
    """
    root = root.resolve()
    stages = [*checks_of(stages, root), *stages]
    ids, left = [], []
    for key, job in live_jobs(stages, root).items():
        folder = next(store.folder(root, stage) for stage in stages if stage.key == key)
        if store.done(folder):  # it is leaving the queue by itself
            continue
        known = record(folder) or {"id": job.id, "runs": [run]}
        others = [name for name in known["runs"] if name != run]
        if run not in known["runs"] and not shared:
            left.append((job.id, others))
        elif others and not shared:
            store.write_json(folder / "slurm" / "job.json", {**known, "runs": others})
            left.append((job.id, others))
        else:
            ids.append(job.id)
    queue.cancel(ids)
    return ids, left


def other_plans(name: str, stages: Sequence[Stage], root: Path) -> list[str]:
    """Return jobs in the queue that a plan of the same recipe with other settings wants, and this one does not."""
    ours = {stage.folder_name for stage in stages}
    records = [(path.parent.parent, store.read_json(path)) for path in root.glob("*/slurm/job.json")]
    wanted = {
        known["id"]: script.comment(folder)
        for folder, known in records
        if known and folder.name not in ours and any(run.rpartition(":")[0] == name for run in known["runs"])
    }
    return [job.id for job in queue.jobs(wanted).values() if job.live and job.comment == wanted[job.id]]


def _remember(folder: Path, number: str, runs: list[str], run: Run, checks: list[str]) -> None:
    entry = {
        "id": number,
        "runs": runs,
        "recipe": run.recipe,
        "cluster": run.cluster,
        "submitted": time.time(),
        "checks": checks,
    }
    store.write_json(folder / "slurm" / "job.json", entry)
