"""What the HTML pages share: one environment for their templates, numbers in few digits, metrics in plain words.

A page is self-contained: no script, nothing loaded from anywhere, and the same input gives the same page to the byte.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rounds.train.engine import templates
from rounds.train.engine.records import Score

FOLDER = Path(__file__).resolve().parent
"""Where the templates of pages and cards are."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]|[\ud800-\udfff]")


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder. A name that it uses and that is not given is an error."""
    environment = templates.environment(FOLDER, html=True)
    environment.filters |= {"score": score, "signed": signed, "mean": mean, "duration": duration}
    return _printable(environment.get_template(template).render(**values))


def meaning(metric: str, tasks: Iterable[Mapping[str, Any]], averages: Mapping[str, Sequence[str]] | None = None) -> str:
    """Put a metric's name in plain words; `tasks` and `averages` are those of the recipe's `evaluate` section."""
    if averages and metric in averages:
        return f"mean of {', '.join(averages[metric])}"
    known = {
        "preferences/accuracy": "share of held-out pairs whose better answer the policy finds likelier, per token",
        "preferences/margin": "by how much it finds the better answer likelier, nats per token",
        "preferences/chosen_logp": "log-probability of the better answers, nats",
        "preferences/rejected_logp": "log-probability of the worse answers, nats",
        "conversations/loss": "loss on held-out answers, nats per token",
    }
    of_answers = {"tokens": "mean length of its own answers, tokens", "ended": "share of its own answers that end by themselves"}
    subject, _, name = metric.partition("/")
    for task in tasks:
        if subject == (task["name"] or task["task"]):
            return f"{name} of {task['task']}" + (f" on {task['source']}" if task["source"] else "")
    return known.get(metric) or of_answers.get(name, "")


def _decimals(stderr: float | None) -> int:
    """Two significant digits of the standard error; three decimals where there is none."""
    return min(6, max(0, 1 - math.floor(math.log10(stderr)))) if stderr else 3


def score(given: Score) -> str:
    """Write a metric as `value ± standard error`."""
    digits = _decimals(given.stderr)
    return f"{given.value:.{digits}f}" + ("" if given.stderr is None else f" ± {given.stderr:.{digits}f}")


def mean(value: float, stderr: float) -> str:
    """Write a number to two significant digits of its standard error."""
    return f"{value:.{_decimals(stderr)}f}".replace("-", "−")


def signed(value: float, stderr: float) -> str:
    """Write a difference, with its sign, to two significant digits of its standard error."""
    return f"{value:+.{_decimals(stderr)}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Write a time in the two units that fit it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min {round(seconds) % 60:02d} s"


def _printable(text: str) -> str:
    """Replace what may not stand in HTML: control characters and halves of surrogate pairs."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
