"""Templates that somebody else wrote, rendered where they can do no harm: Jinja of task files.

In: templates by name, and rows. Out: the texts, row by row. A template sees the row's columns and nothing else: jinja2's sandbox keeps it
from Python's inner objects, and it is rendered in a process of its own that may take some memory and some seconds and no more, since a
template can also count without an end or write a text as large as the machine.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rounds.data_prep.errors import UserError

_BYTES = 1 << 30
_SECONDS, _SECONDS_PER_ROW = 20.0, 0.02
"""A template renders a row in a tenth of a millisecond."""
MOST_CHARACTERS = 1 << 20
"""Of one text: far more than a model reads."""


def render(templates: Mapping[str, str], rows: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, str]]:
    """Render every template for every row. Raises `UserError`, beginning with `where`, for one that cannot be rendered within bounds."""
    if not templates:
        return [{} for _ in rows]
    seconds = _SECONDS + _SECONDS_PER_ROW * len(rows)
    asked = json.dumps({"templates": dict(templates), "rows": list(rows)}).encode()
    command = [sys.executable, "-P", "-m", "rounds.train.tokens.sandbox"]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{where}: its templates did not render {len(rows):,} rows within {seconds:.0f} s: one loops without an end"
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise UserError(f"{where}: its templates need more than {_BYTES >> 20} MiB, or end the process that renders them") from None
    if "error" in answer:
        raise UserError(f"{where}: {answer['error']}")
    return answer["texts"]


def _rendered(templates: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    texts, name, row = [], "", None
    try:
        made = {}
        for name, text in templates.items():
            made[name] = environment.from_string(text)
        for row in rows:
            line = {}
            for name, template in made.items():
                line[name] = template.render(**row)
                if len(line[name]) > MOST_CHARACTERS:
                    raise ValueError(f"writes {len(line[name]):,} characters, where {MOST_CHARACTERS:,} are the most")
            texts.append(line)
    except Exception as error:
        of_row = f" of row {row.get('id')!r}" if row else ""
        why = "needs more memory than it may have" if isinstance(error, MemoryError) else f"{str(error)[:300]} ({type(error).__name__})"
        return {"error": f"{name}: its template cannot be rendered{of_row}: {why}"}
    return {"texts": texts}


def _bound() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # where there are no such limits, time is bounded all the same
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))


if __name__ == "__main__":
    _bound()
    given = json.load(sys.stdin)
    json.dump(_rendered(given["templates"], given["rows"]), sys.stdout)
