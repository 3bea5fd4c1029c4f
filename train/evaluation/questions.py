"""Which held-out rows ask one question: they are no independent evidence, so errors are taken over questions.

In: a folder of records. Out: a name of its question for each row: what the row's source says of its id (`Source.question`), or
else a hash of the prompt, so that two pairs of one prompt are together whatever their ids.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from rounds.data_prep import records, sources
from rounds.data_prep.records import RECORDS


def of_folder(folder: Path) -> dict[str, str]:
    """Return a row's id -> its question, for all rows of a folder."""
    return {row.id: of(row) for row in records.read_records(folder / RECORDS)}


def of(row: records.Record) -> str:
    """Name the question that a row asks."""
    if name := _by_id(row.source):
        return name(row.id)
    return f"{records.stable_hash(*(turn.content for turn in records.prompt_of(row))):016x}"


@functools.lru_cache
def _by_id(source: str) -> Callable[[str], str] | None:
    return sources.load(source).question if source in sources.names() else None
