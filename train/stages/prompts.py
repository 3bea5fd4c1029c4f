"""Stage `prompts`: what policies are asked to answer, to be trained on what they say.

In: folders of `source` stages as `source.NAME`, of any kind of record, and as `heldout.NAME` the sets that no prompt may come from.
Out: `records.parquet`, an ordinary folder of records of kind prompt, filtered and mixed as training sets are, each under an id that no
other has, `SOURCE:ID`; `parts.parquet`, which part each is in (`train/generation/parts.py`); `dropped.jsonl` and `masked.jsonl`. The
right answer of a question goes with its prompt. Counts: as of `data`, how many have a right answer, and how many are in each part.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from rounds.data_prep import build
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS, Prompt, read_records, write_records
from rounds.train.config.cluster import Machine
from rounds.train.engine.params import PromptsParams
from rounds.train.engine.records import Counts
from rounds.train.generation import parts


def run(params: PromptsParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Filter and mix, then divide. Raises `UserError` when nothing is left for a part."""
    counts = build.data(params, inputs, out, machine)
    registered = {item.name: _registered(inputs[f"source.{item.name}"]) for item in params.mix}
    part_by_id: dict[str, int] = {}
    answered = 0

    def rows() -> Iterator[Prompt]:
        nonlocal answered
        for row in read_records(out / RECORDS):
            assert isinstance(row, Prompt)
            name = f"{row.source}:{row.id}"
            part_by_id[name] = parts.part_of(parts.question_of(row, registered[row.source]), params.parts)
            answered += row.answer is not None
            yield replace(row, id=name)

    write_records(out / RECORDS, rows(), "prompt")  # the file is replaced only when the new one is complete
    sizes = Counter(part_by_id.values())
    empty = [str(part) for part in range(1, params.parts + 1) if not sizes[part]]
    if empty:
        raise UserError(
            f"nothing is left for part {', '.join(empty)} of {params.parts}: {len(part_by_id)} prompts are in the other parts; "
            "lower `parts`, or give more sources"
        )
    parts.write(out, part_by_id)
    return {**counts, "with_right_answer": answered, "parts": {str(part): sizes[part] for part in sorted(sizes)}}


def _registered(source: Path) -> str:
    """Return the name under which a source's set is registered: its rows say it."""
    with pq.ParquetFile(source / RECORDS) as file:
        return file.read_row_group(0, columns=["source"])["source"][0].as_py()
