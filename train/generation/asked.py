"""Answers with what was asked: samples, each beside the record of its prompt, as the policy read it.

In: the folders of stages `prompts` and `sample`. Out: records whose prompt begins with the system prompt that was said, and samples.
"""

from dataclasses import replace
from pathlib import Path

from rounds.data_prep.records import RECORDS, Prompt, Record, read_records, stable_hash
from rounds.data_prep.turns import with_system
from rounds.train.engine import store
from rounds.train.engine.params import AnswersParams, PromptSet
from rounds.train.generation import parts, samples
from rounds.train.generation.samples import Sample


def first(source: Path, wanted: PromptSet) -> list[Record]:
    """Return the records of a set, or of its part, that are to be answered: the first `max_rows` in an order by hash, a fair sample."""
    among = parts.read(source) if wanted.part is not None else {}
    of_part = (row for row in read_records(source / RECORDS) if wanted.part is None or among[row.id] == wanted.part)
    return sorted(of_part, key=lambda row: stable_hash("evaluate", row.id))[: wanted.max_rows]


def read(prompts: Path, answered: Path) -> list[tuple[Prompt, Sample]]:
    """Return every answer with its prompt, in the order of the samples."""
    known = {each.id: each for each in wanted(prompts, answered)}
    return [(known[each.prompt_id], each) for each in samples.read(samples.file_of(answered, set_of(answered).name))]


def wanted(prompts: Path, answered: Path) -> list[Prompt]:
    """Return all prompts that were to be answered, those that could not be among them."""
    asked = set_of(answered)
    among = parts.read(prompts)
    rows = (row for row in read_records(prompts / RECORDS) if asked.part is None or among[row.id] == asked.part)
    return [replace(row, prompt=with_system(row.prompt, asked.system_prompt)) for row in rows if isinstance(row, Prompt)]


def set_of(answered: Path) -> PromptSet:
    """Return what a stage `sample` was asked: its one set."""
    params = store.spec(answered).record
    assert isinstance(params, AnswersParams) and len(params.sets) == 1
    return params.sets[0]
