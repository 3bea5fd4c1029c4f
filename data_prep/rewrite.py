"""What a `source` stage does to the rows that it keeps, before any other stage sees them.

In: the stage's records, a system prompt, and the use of filter `phi`. Out: the same file with the prompt said first where
a row brings none, and with what may identify a person masked, or the row dropped. That is done here and not in `data`, so
that it holds for the rows of this source alone, for held-out rows too, and that no other folder of the store ever holds
the text as it came. Ids and kinds are written down, never text.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rounds.data_prep import filters, progress
from rounds.data_prep.records import Conversation, Kind, Record, batches_in, read_batch, write_records
from rounds.data_prep.schema import FilterUse
from rounds.data_prep.turns import with_system


@dataclass
class Rewritten:
    """How many rows are left, and what was done to the others, by reason and by kind."""

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    masked_rows: int = 0
    masked: Counter[str] = field(default_factory=Counter)


def rewrite(path: Path, kind: Kind, *, system_prompt: str | None, phi: FilterUse | None, dropped: Path, masked: Path) -> Rewritten:
    """Rewrite a file of records in place; adds a line to `dropped` for each row that goes, writes `masked` anew."""
    found = Rewritten()
    rule = filters.build(phi, ()) if phi else None
    out = path.parent

    def rows() -> Iterator[Record]:
        done = 0
        with dropped.open("a", encoding="utf-8") as drops, masked.open("w", encoding="utf-8") as masks:
            for number in range(batches_in(path)):
                _, records = read_batch(path, number)
                verdicts = rule(records) if rule else [None] * len(records)
                for record, verdict in zip(records, verdicts, strict=True):
                    if isinstance(verdict, str):
                        found.dropped[verdict] += 1
                        drops.write(json.dumps({"id": record.id, "filter": "phi", "reason": verdict}) + "\n")
                        continue
                    if isinstance(verdict, filters.Changed):
                        found.masked_rows += 1
                        found.masked.update(verdict.counts)
                        masks.write(json.dumps({"id": record.id, "filter": "phi", "masked": verdict.counts}) + "\n")
                    yield _left(record, verdict, system_prompt)
                done += len(records)
                progress.write(out, done, None, "rows masked")

    # The rows are read from the same file: it is replaced only when the new one is complete.
    found.records = write_records(path, rows(), kind)
    return found


def rewritten(rows: Sequence[Record], *, system_prompt: str | None, phi: FilterUse | None) -> list[Record]:
    """Return what `rewrite` would leave of these rows."""
    verdicts = filters.build(phi, ())(rows) if phi else [None] * len(rows)
    judged = zip(rows, verdicts, strict=True)
    return [_left(record, verdict, system_prompt) for record, verdict in judged if not isinstance(verdict, str)]


def _left(record: Record, verdict: filters.Changed | None, system_prompt: str | None) -> Record:
    """Return a row that is kept as it is kept."""
    kept = verdict.record if isinstance(verdict, filters.Changed) else record
    return _with_system(kept, system_prompt) if system_prompt else kept


def _with_system(record: Record, text: str) -> Record:
    turns = with_system(record.messages if isinstance(record, Conversation) else record.prompt, text)
    return replace(record, messages=turns) if isinstance(record, Conversation) else replace(record, prompt=turns)
