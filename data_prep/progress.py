"""How a stage tells the outside how far it is: a small `progress.json` in its own folder, replaced atomically.

Whoever watches (the live display, `rounds status`, a person with `cat`) reads the same file, here or on a cluster.
"""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

from rounds.data_prep.whole import whole

_SECONDS_BETWEEN_WRITES = 0.2
_last_write: dict[Path, float] = {}
_began: dict[Path, tuple[str, int, float, float]] = {}


def write(out: Path, step: int, total: int | None, unit: str, **numbers: float) -> None:
    """Say that `step` of `total` units are done, with numbers worth showing such as `loss`. Cheap to call often."""
    now = time.monotonic()
    if step != total and now - _last_write.get(out, 0.0) < _SECONDS_BETWEEN_WRITES:
        return
    _last_write[out] = now
    before = _began.get(out)
    if before is None or before[0] != unit or step < before[1]:
        before = _began[out] = (unit, step, time.time(), now)
    state = {
        "step": step,
        "total": total,
        "unit": unit,
        "time": before[2] + now - before[3],  # a clock that is set meanwhile changes no estimate
        "began": before[2],
        "began_step": before[1],
    }
    with whole(out / "progress.json") as partial:
        partial.write_text(json.dumps({**state, **numbers}))


def read(out: Path) -> dict[str, Any] | None:
    """Return what the `progress.json` of a folder says; None where there is none, or one that says nothing."""
    state = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        state = json.loads((out / "progress.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not isinstance(state.get("unit"), str) or not isinstance(state.get("total", ""), int | None):
        return None
    plain = {name: value for name, value in state.items() if name not in ("total", "unit")}
    sound = isinstance(state.get("step"), int) and all(isinstance(value, int | float) for value in plain.values())
    return state if sound and all(math.isfinite(state.get(name, 0)) for name in _PLACE if name in plain) else None


def numbers(state: dict) -> dict[str, float]:
    """Return what a `progress.json` holds besides how far it is."""
    return {name: value for name, value in state.items() if name not in _PLACE}


def seconds_left(state: dict) -> float | None:
    """Estimate from a `progress.json` how long the rest takes at the pace since this attempt began; None where it cannot tell."""
    steps, spent = (
        state["step"] - state.get("began_step", state["step"]),
        state["time"] - state.get("began", state["time"]),
    )
    return (state["total"] - state["step"]) * spent / steps if state["total"] and steps > 0 else None


_PLACE = ("step", "total", "unit", "time", "began", "began_step")
