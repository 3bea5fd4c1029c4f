"""The first rows of a source, for `rounds data preview`, and why others do not fit.

In: a plan, and a name under its sources. Out: records. They come from the furthest finished stage that holds them; where none is
finished they are read from the source itself, and treated as its stage would treat them. Needs no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rounds.data_prep import inventory, records, rewrite, sources, tally
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.records import RECORDS, Record
from rounds.data_prep.schema import SourceParams, SourceUse
from rounds.train.engine import store
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.params import PackParams, TokenizeParams
from rounds.train.plan.pipeline import Plan

_LOOKED_AT = 200
"""Rows of an unfinished source that are looked at, at the least, so that the reasons of those that do not fit are seen."""


_NAMED = 5
"""Files that are not read are named up to this many."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a source, and where they were found."""

    records: list[Record]
    found: str
    max_length: int | None
    """Tokens that training reads of a row at most, where a set of the recipe takes rows of this source."""
    not_used: str = ""
    """The columns that say something and that nobody reads, as far as the rows were looked at."""
    unfit: str = ""
    """How many of the rows looked at do not fit, and why, and which files are not read; "" where the source's stage has counted them."""


def rows(plan: Plan, root: Path, name: str, count: int) -> Rows:
    """Return the first rows of a source. Raises `UserError` where the recipe has none of that name, or no row fits."""
    own = next((stage for stage in plan.stages if stage.name == f"source.{name}"), None)
    if own is None:
        names = [stage.name.removeprefix("source.") for stage in plan.stages if stage.kind.reads_source]
        raise UserError(f"no stage of this recipe reads a source {name!r}: {nearest(name, names)}")
    longest = _max_length(plan, own)
    for stage in plan.stages:
        read = [key.removeprefix("source.") for key, parent in stage.inputs.items() if parent.key == own.key]
        if stage.kind.mixes and not stage.kind.asks and read and store.done(store.folder(root, stage)):
            path = store.folder(root, stage) / RECORDS
            taken = list(_first(path, read[0], count))
            if taken:
                return Rows(taken, f"of {stage.name}: after filters and mix", longest)
    if store.done(store.folder(root, own)):
        path = store.folder(root, own) / RECORDS
        return Rows(list(_first(path, None, count)), f"of {own.name}: before filters and mix", longest)
    said = f"read for this preview, since {own.name} is not finished: before filters and mix"
    taken, not_used, unfit = _straight(own, count)
    return Rows(taken, said, longest, not_used, unfit)


def prompts(plan: Plan, root: Path, name: str, count: int) -> Rows:
    """Return the first of a set of prompts. Raises `UserError` where the recipe has none of that name, or it is not made yet."""
    stages = {stage.name.removeprefix("prompts."): stage for stage in plan.stages if stage.kind.asks}
    stage = _made(root, stages, name, f"no set of prompts is named {name!r} in the recipe")
    return Rows(list(_first(store.folder(root, stage) / RECORDS, None, count)), f"of {stage.name}: after filters and mix", None)


def own_pairs(plan: Plan, root: Path, name: str, count: int) -> Rows:
    """Return the first pairs that a round made of its policy's answers. Raises `UserError` where no round of that name makes any, or they
    are not made yet."""
    stages = {stage.name.removeprefix("pairs."): stage for stage in plan.stages if stage.kind.pairs_up}
    stage = _made(root, stages, name, f"no round {name!r} of the recipe makes pairs of its own answers")
    found = f"of {stage.name}: answers of the policy before the round, before filters and mix"
    return Rows(list(_first(store.folder(root, stage) / RECORDS, None, count)), found, _max_length(plan, stage))


def _made(root: Path, stages: Mapping[str, Stage], name: str, none: str) -> Stage:
    """Return the stage of that name, which must be done; `none` says that there is none."""
    if name not in stages:
        raise UserError(f"{none}. {nearest(name, stages)}")
    if not store.done(store.folder(root, stages[name])):
        raise UserError(f"{stages[name].name} is not made yet: `rounds run RECIPE --until {stages[name].name}` makes it")
    return stages[name]


def _max_length(plan: Plan, source: Stage) -> int | None:
    """Return the `max_length` of the sets that take rows of a source, the largest of several."""
    sets = {stage.key for stage in plan.stages if stage.kind.mixes and source.key in _keys(stage)}
    readers = [(stage.params, stage.inputs["data"]) for stage in plan.stages if stage.kind.makes_tokens]
    return max(
        (params.max_length for params, data in readers if isinstance(params, PackParams | TokenizeParams) and data.key in sets),
        default=None,
    )


def _keys(data: Stage) -> set[str]:
    return {parent.key for key, parent in data.inputs.items() if key.startswith("source.")}


def _first(path: Path, source: str | None, count: int) -> Iterator[Record]:
    """Yield the first rows of a file, of one source or of all."""
    left = count
    for number in range(records.batches_in(path)):
        batch = pq.ParquetFile(path).read_row_group(number, columns=["source"]).column("source").to_pylist()
        if source is not None and source not in batch:
            continue
        _, found = records.read_batch(path, number)
        for name, record in zip(batch, found, strict=True):
            if left and (source is None or name == source):
                left -= 1
                yield record
        if not left:
            return


def _straight(stage: Stage, count: int) -> tuple[list[Record], str, str]:
    """Read the first rows that fit, and treat them as the source's stage would; also say which columns of those looked at nobody reads,
    and how many of them do not fit."""
    params = stage.params
    assert isinstance(params, SourceParams)
    given: dict[str, Any] = params.use.model_dump()
    asset = stage.inputs.get("path")
    given["path"] = str(asset.path) if isinstance(asset, Asset) else None
    given["revision"] = params.revision or given["revision"]
    use = SourceUse.model_validate(given)
    origin, counts = sources.load(use.source), tally.Tally()
    where = f"{stage.name}" + (f" ({use.path})" if use.path else "")
    fitting: list[Record] = []
    with inventory.noting() as noted:
        for record in tally.records(origin, origin.rows(use), use, counts, lambda line: None):
            if len(fitting) < count:
                fitting.append(record)
            if len(fitting) == count and counts.rows >= _LOOKED_AT:
                break
    if not fitting and counts.too_many_bad(use):
        raise UserError(f"{where}: {counts.complaint(origin, use)}")
    if not fitting:
        raise UserError(f"{where}: none of {counts.rows} rows of split {use.split!r} became a record {dict(counts.dropped)}")
    kept = rewrite.rewritten(fitting, system_prompt=params.system_prompt, phi=params.phi)
    not_used = ", ".join(origin.not_used(use, counts.unread))
    if counts.too_many_bad(use):
        return kept, not_used, f"a run would refuse this source if the rest were alike: {counts.complaint(origin, use)}"
    reasons = ", ".join(f"{reason} ({rows})" for reason, rows in counts.dropped.most_common())
    said = [f"of the first {counts.rows} rows {counts.dropped.total()} give no record: {reasons}"] if reasons else []
    said += [f"of the first {counts.rows} rows {counts.cleaned} had control characters taken out"] if counts.cleaned else []
    return kept, not_used, "; ".join([*said, *_not_read(noted)])


def _not_read(noted: inventory.Inventory) -> list[str]:
    named = [f"{name} ({why.split(';')[0]})" for name, why in list(noted.not_read.items())[:_NAMED]]
    more = f", and {len(noted.not_read) - _NAMED} more" if len(noted.not_read) > _NAMED else ""
    return [f"not read: {', '.join(named)}{more}"] if named else []
