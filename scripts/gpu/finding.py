"""What a check finds: one row of the table, and how it becomes JSON."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


class NotHere(Exception):
    """Something cannot be checked on this machine or with these versions; what it says is the reason."""


@dataclass(frozen=True)
class Finding:
    """`value` is within `bound` (at most), or was only measured, or could not be."""

    what: str
    value: float | None = None
    unit: str = ""
    bound: float | None = None
    status: Literal["ok", "failed", "n/a"] = "ok"
    reason: str = ""
    """Why it failed or could not be checked, or what else was measured, in words."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further numbers, for the JSON file."""


def within(what: str, value: float, bound: float, unit: str = "", reason: str = "", **more: Any) -> Finding:
    """Return a finding that fails above its bound, and for what is no number."""
    fine = math.isfinite(value) and value <= bound
    return Finding(what, value, unit, bound, "ok" if fine else "failed", reason, more)


def measured(what: str, value: float, unit: str = "", reason: str = "", **more: Any) -> Finding:
    """Return a number that nothing is demanded of, but that it is one."""
    return Finding(what, value, unit, None, "ok" if math.isfinite(value) else "failed", reason, more)


def not_here(what: str, reason: str) -> Finding:
    """Return what could not be checked, and why."""
    return Finding(what, status="n/a", reason=" ".join(reason.split()))


def append(path: Path, finding: Finding) -> None:
    """Write a finding at once: a process that is ended afterwards has said what it knew."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(finding)) + "\n")


def read(path: Path) -> list[Finding]:
    """Read what a check has found so far."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [Finding(**json.loads(line)) for line in lines]
