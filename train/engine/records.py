"""The files of bookkeeping in a stage's folder, as frozen records: what was asked, what came of it, why it failed.

Read tolerantly: a field that another release wrote is passed over. The names of the files stand here too, and
those of results that other kinds of stages read.
"""

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import Section
from rounds.train.engine import params
from rounds.train.engine.kinds import KINDS, Kind

SPEC, DONE, FAILED = "stage.json", "done.json", "failed.json"
ROWS, PAIRS, LOGPS, METRICS = "rows.parquet", "pairs.parquet", "logps.parquet", "metrics.jsonl"
SCORES, ITEMS = "scores.json", "items.parquet"
PROTOCOL = "_protocol"
"""The key of `scores.json` under which it says how was measured; no metric is called so."""
DECISION, MANIFEST, POLICY, CHECKS = "decision.json", "manifest.json", "policy.json", "checks.json"
PROGRESS, LOG, HOLDER, LOCK, JOB, STOP = "progress.json", "log.txt", "holder.json", "lock", "job.json", "stop"


Counts = dict[str, Any]
"""What a stage counted, as plain JSON: a kind's own, and the one part of `done.json` that has no record."""


class Record(BaseModel):
    """What one of the files says."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Input(Record):
    """What a stage reads: another stage's folder, or a file or folder of the user's."""

    stage: str | None = None
    """Name of the folder in the store."""
    path: str | None = None
    digest: str | None = None
    patterns: tuple[str, ...] = ("*",)


class Spec(Record):
    """`stage.json`: what a stage is asked to do."""

    name: str
    function: str
    """Name of its kind."""
    version: int
    params: dict[str, Any]
    """As stored; `record` reads them."""
    beside: dict[str, Any] = {}
    """What of them is in no key."""
    inputs: dict[str, Input]
    after_stop: bool = False
    git_commit: str | None = None

    @property
    def kind(self) -> Kind:
        """The stage's kind. Raises `UserError` for one that this release does not have."""
        if self.function not in KINDS:
            raise UserError(f"{self.name}: no kind of stage is called {self.function!r}. {nearest(self.function, KINDS)}")
        return KINDS[self.function]

    @property
    def record(self) -> Section:
        """The params as their kind's record. Raises `UserError` where this release does not know what they say."""
        try:
            return params.record_of(self.kind).read_stored(self.params, self.beside)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{self.name}: its params were written by another release: {'.'.join(map(str, first['loc']))}: "
                f"{first['msg']}; plan and run the recipe again"
            ) from None

    def stages(self) -> dict[str, str]:
        """Return the folders of other stages that it reads, by the input's name."""
        return {name: each.stage for name, each in self.inputs.items() if each.stage is not None}


class Done(Record):
    """`done.json`: the end of a finished stage."""

    status: str
    """`done`, or `skipped` behind a gate that ended the rounds."""
    seconds: float = 0.0
    """From start to end."""
    cpu_seconds: float = 0.0
    finished: float | None = None
    """Seconds since 1970."""
    counts: Counts = {}
    """What its kind counts."""
    because: str = ""
    """Why it was skipped."""
    same_as: str | None = None
    """The folder whose answer it took over: the same work behind other gates."""
    digests: dict[str, str] = {}
    """SHA-256 of each file of its result."""
    sizes: dict[str, int] = {}
    """Bytes of each; results of before releases that checked them have none."""
    seal: str | None = None
    """SHA-256 of all the rest, as canonical JSON."""

    @property
    def skipped(self) -> bool:
        """Whether the rounds had ended before it."""
        return self.status == "skipped"


class Score(Record):
    """One metric in `scores.json`."""

    value: float
    stderr: float | None = None
    """Standard error of a mean; None where there is none."""
    n: int
    """Items."""
    questions: int | None = None
    """Of which items that ask one question in other words are one; None where a metric is known only as a whole."""
    higher_is_better: bool | None = True
    """None for what is measured to understand a policy, not to rank it."""
    floors: dict[str, float] = {}
    """Of the share of right choices: what is reached without reading a question, by `chance`, by a `constant` position, by naming the
    `longest` choice."""


class Verdict(Record):
    """One rule of a gate in `decision.json`, with the numbers that decided it."""

    metric: str = ""
    new: float = math.nan
    old: float = math.nan
    n: int = 0
    questions: int = 0
    difference: float = math.nan
    stderr: float = math.nan
    rule: str = ""
    """What was wanted, in words."""
    holds: bool
    says: str


class Decision(Record):
    """`decision.json`: what a gate decided."""

    decision: str
    """`accepted`, `rejected` or, behind a gate that ended the rounds, `skipped`."""
    stops_rounds: bool = False
    rules: tuple[Verdict, ...] = ()


class Failure(Record):
    """`failed.json`: why the last attempt ended."""

    message: str
    user_error: bool = False
    """The message is meant for the person and says all; else the log has a traceback."""
    log: str | None = None
    """Of the rank that failed, where there are several."""
    lost_contact: bool = False
    """A rank only saw that others were gone."""
    state: str | None = None
    """How the batch script calls it, such as `time limit`."""
    time: float | None = None
    """Of its writing, in seconds since 1970."""


def log_of(folder: Path, rank: int) -> Path:
    """Return the file that the output of a stage's rank goes to."""
    return folder / LOG if rank == 0 else folder / "logs" / f"rank-{rank}.txt"


def failure(folder: Path, plain: Any) -> Failure | None:
    """Read what `failed.json` held; None for no such file."""
    try:
        return None if plain is None else Failure.model_validate(plain)
    except ValidationError:
        return Failure(message=f"{folder / FAILED} is damaged; see the stage's log")
