"""Into which part of its set a prompt falls, so that no two rounds train on answers to one question.

In: prompts, each with the registered set that it comes from. Out: `parts.parquet` beside them, a part from 1 by a prompt's id. A part
follows from the question alone: it stays when other prompts come or go, and is the same for every seed.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep import records, sources
from rounds.data_prep.records import Prompt
from rounds.data_prep.render import question_alone
from rounds.data_prep.turns import normalised
from rounds.data_prep.whole import whole

PARTS = "parts.parquet"


def question_of(prompt: Prompt, source: str) -> str:
    """Name what a prompt asks: as its registered source tells it by the id, else by the words of all turns but the system's, and without
    the list of its choices."""
    by_id = sources.load(source).question if source in sources.names() else None
    if by_id:
        return f"{source}\x1f{by_id(prompt.id)}"
    *before, last = [turn.content for turn in prompt.prompt if turn.role != "system"] or [""]
    return "\x1f".join(map(normalised, (*before, question_alone(last, prompt.choices))))


def part_of(question: str, parts: int) -> int:
    """Return the part, from 1, of so many, that a question is in."""
    return 1 + records.stable_hash("part", question) % parts


def write(folder: Path, part_by_id: Mapping[str, int]) -> None:
    """Write which part each prompt of a folder is in."""
    table = pa.table({"id": pa.array(part_by_id, pa.string()), "part": pa.array(part_by_id.values(), pa.int32())})
    with whole(folder / PARTS) as partial:
        pq.write_table(table, partial, compression="zstd")


def read(folder: Path) -> dict[str, int]:
    """Return the part of each prompt of a folder by its id."""
    table = pq.read_table(folder / PARTS)
    return dict(zip(table["id"].to_pylist(), table["part"].to_pylist(), strict=True))
