"""What SLURM is asked and told: a thin client of sbatch, squeue, sacct, scancel and sinfo.

Only text forms that every version since 20.02 prints alike are read. A command that fails is never taken for an answer: a
controller that does not respond would otherwise look like an empty queue, and everything would be submitted twice.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rounds.data_prep.errors import UserError

LIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
        "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT"}  # fmt: skip
"""States of a job that will run, runs, or is about to leave; all others are final."""
DOOMED = "DependencyNeverSatisfied"
_COLUMNS = {
    "JobID": 16,
    "State": 24,
    "Reason": 60,
    "NodeList": 80,
    "RestartCnt": 8,
    "StartTime": 24,
    "TimeLeft": 16,
    "Comment": 240,
    "Name": 130,
}
_TIMEOUT_SECONDS = 120
_LINES_KEPT = 8


@dataclass(frozen=True)
class Job:
    """A job as SLURM knows it. By `comment` and `name` ours are told from a stranger's job with a reused id."""

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    starts: str = ""
    time_left: str = ""
    comment: str = ""
    name: str = ""

    def carries(self, comment: str, name: str | None = None) -> bool:
        """Tell whether this is the job that was submitted with this comment, or name. Some sites write comments of their own over
        ours or around them; few do so with names."""
        return comment in self.comment or (bool(name) and name == self.name)

    @property
    def live(self) -> bool:
        """Whether it will still run, or runs."""
        return self.state in LIVE and self.reason != DOOMED


def available() -> bool:
    """Tell whether this machine can talk to a SLURM."""
    return silence() is None


def silence() -> str | None:
    """Say why no SLURM answers here, or return None. Its commands may be installed where no cluster is configured."""
    if shutil.which("sbatch") is None:
        return "no sbatch on this machine"
    try:
        _call(["sinfo", "--noheader", "--format=%P"])
    except UserError as error:
        return str(error)
    return None


def submit(script: Path, after_ok: Sequence[str] = (), after_any: Sequence[str] = ()) -> str:
    """Submit a script and return the job id. Raises `UserError` with SLURM's own words when it is refused."""
    command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
    conditions = [f"{kind}:{':'.join(ids)}" for kind, ids in (("afterok", after_ok), ("afterany", after_any)) if ids]
    if conditions:
        command.append(f"--dependency={','.join(conditions)}")
    printed = _call([*command, str(script)])
    ids = re.findall(r"^(\d+)(?:;\S*)?$", printed, re.MULTILINE)  # a site's own greetings may stand before it
    if not ids:
        raise UserError(
            f"sbatch took the script, and printed no job id but {printed.strip()[:300]!r}: look with `squeue --me`, and cancel what "
            "it submitted before running again"
        )
    return ids[-1]


def test(script: Path) -> str | None:
    """Ask whether SLURM would take a script; None if so, else why not."""
    done = _run(["sbatch", "--test-only", str(script)])
    return None if done.returncode == 0 else _words(done.stderr)


def jobs(ids: Iterable[str] = (), mine: bool = False) -> dict[str, Job]:
    """Look jobs up in the queue by id, or all of the calling user's. Those that SLURM has forgotten are left out."""
    ids = sorted(set(ids))
    if not ids and not mine:
        return {}
    wanted = ["--me"] if mine else [f"--jobs={','.join(ids)}"]
    columns = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
    done = _run(["squeue", "--noheader", "--states=all", *wanted, f"--Format={columns}"])
    if done.returncode and "Invalid job id" in done.stderr:  # said only when a single id is asked for
        return {}
    _check(done, "squeue")
    found = [_job(line) for line in done.stdout.splitlines() if line.strip()]
    return {job.id: job for job in found}


def _job(line: str) -> Job:
    values, at = [], 0
    for width in _COLUMNS.values():
        values.append(line[at : at + width].strip())
        at += width
    number, state, reason, nodes, restarts, starts, left, comment, name = values
    return Job(
        number,
        state.split()[0],
        reason,
        nodes.replace("(null)", ""),
        int(restarts or 0),
        starts.replace("N/A", ""),
        left,
        comment.replace("(null)", ""),
        name,
    )


def past(wanted: Mapping[str, tuple[str | None, str]]) -> dict[str, Job]:
    """Look jobs up in the accounting, where there is one: what the queue has forgotten is still known there.

    `wanted` is id -> name, where known, and comment. Ids come round again, so a job of another name is left out; so is one of
    another comment, but few clusters keep comments there.
    """
    if not wanted or shutil.which("sacct") is None:
        return {}
    done = _run(
        ["sacct", "--noheader", "--parsable2", "--delimiter=\x1f", "--allocations", "--duplicates", f"--jobs={','.join(sorted(wanted))}",
         "--format=JobIDRaw,State,NodeList,Start,Comment,JobName"]
    )  # fmt: skip
    if done.returncode:  # no accounting on this cluster, which is common
        return {}
    found: dict[str, Job] = {}
    for line in done.stdout.splitlines():
        number, state, nodes, start, comment, name = [*line.split("\x1f"), *[""] * 5][:6]
        ours = wanted.get(number)
        if ours is None or (ours[0] and name != ours[0]) or comment not in ("", ours[1]):
            continue
        runs_before = found[number].restarts + 1 if number in found else 0
        found[number] = Job(number, state.split()[0], "", nodes.replace("None assigned", ""), runs_before, start, comment=ours[1])
    return found


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs for good: none of them is requeued. One that has just ended by itself is no mistake."""
    if ids:
        done = _run(["scancel", *ids])
        if "already completing or completed" not in done.stderr:
            _check(done, "scancel")


def _call(command: list[str]) -> str:
    done = _run(command)
    _check(done, command[0])
    return done.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # SBATCH_PARTITION or SQUEUE_FORMAT would change what a script means and what is printed; and the SLURM_* variables of an
    # interactive job that we may be called from contradict the script's ("mutually exclusive" is what srun says then).
    clean = {name: value for name, value in os.environ.items() if not re.match(r"SBATCH|SQUEUE|SACCT|SLURM_(?!CONF)", name)}
    clean.setdefault("PATH", os.defpath)  # which a job inherits
    try:
        return subprocess.run(command, capture_output=True, text=True, env=clean, timeout=_TIMEOUT_SECONDS, check=False)
    except FileNotFoundError:
        raise UserError(f"no {command[0]} on this machine: run this where SLURM's commands are, as on a login node") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within {_TIMEOUT_SECONDS} s; is the SLURM controller up?") from None


def _check(done: subprocess.CompletedProcess[str], name: str) -> None:
    if done.returncode:
        raise UserError(f"{name} failed: {_words(done.stderr)}")


def _words(text: str) -> str:
    """Return what a command complained of. The last line is SLURM's; those before it are often the site's own, and say why."""
    said = [re.sub(r"^(sbatch|squeue|scancel|sinfo)?: ?(error: )?", "", line.strip()) for line in text.splitlines()]
    lines = list(dict.fromkeys(line for line in said if line))
    return "; ".join(lines[-_LINES_KEPT:]) or "it said nothing"
