"""The two stages of data preparation: `source` turns one set into records, `data` filters and mixes several.

In: a stage's params and input folders. Out: `records.parquet`, and `dropped.jsonl` with one line for each row that was
dropped: its id or number and the reason, never its text; `data` writes `masked.jsonl` too, with the id of each row that
a filter changed and the kinds of what was masked. Both return counts for `done.json`.
"""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rounds.data_prep import inventory, progress, sources
from rounds.data_prep.errors import UserError
from rounds.data_prep.mix import REPEAT, choose, mix, repeated_id
from rounds.data_prep.records import READABLE, RECORDS, Kind, Record, read_kind, read_records, schemas, write_records
from rounds.data_prep.rewrite import rewrite
from rounds.data_prep.schema import DataParams, SourceParams, SourceUse
from rounds.data_prep.sieve import Sieve, Sifted, sift
from rounds.data_prep.spool import Spool
from rounds.data_prep.tally import Tally, records

DROPPED, MASKED = "dropped.jsonl", "masked.jsonl"
logger = logging.getLogger(__name__)


@dataclass
class _Filtered:
    """The ids of one source's rows that are kept, and counts by filter and reason, or filter and kind."""

    ids: list[str] = field(default_factory=list)
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)
    masked: Counter[tuple[str, str]] = field(default_factory=Counter)


def source(params: SourceParams, inputs: dict[str, Path], out: Path, machine: Any) -> dict[str, Any]:
    """Fetch one set and write its rows as records.

    `inputs` may hold `path`, a local copy. Raises `UserError` when more than
    `use.max_bad_share` of the rows do not fit, or no record is left.
    """
    use = SourceUse.model_validate(
        {
            **params.use.model_dump(),
            "path": str(inputs["path"]) if "path" in inputs else None,
            "revision": params.revision or params.use.revision,
        }
    )
    origin = sources.load(use.source)
    kind, tally = origin.kind(use), Tally()
    with inventory.noting() as noted:
        count = write_records(out / RECORDS, _records(origin, use, out, tally), kind)
    progress.write(out, tally.rows, tally.rows, "rows")
    where = f"source {use.source!r}" + (f" ({use.path})" if use.path else "")
    for name, why in noted.not_read.items():
        logger.info("%s: not read: %s: %s", where, name, why)
    if tally.too_many_bad(use):
        raise UserError(f"{where}: {tally.complaint(origin, use)}")
    if not count:
        raise UserError(f"{where}: none of {tally.rows} rows of split {use.split!r} became a record {dict(tally.dropped)}")
    chosen = _keep(out / RECORDS, use, kind, count)
    left, masked = _rewritten(params, kind, chosen, tally, out)
    if not left:
        raise UserError(f"{where}: filter phi dropped all {chosen} rows {dict(tally.dropped)}; `phi: mask` keeps them")
    not_used = origin.not_used(use, tally.unread)
    if not_used:
        logger.info("%s: not used: %s", where, ", ".join(not_used))
    logger.info("%s: %d rows, %d records, dropped %s", where, tally.rows, left, dict(tally.dropped))
    return {
        "rows": tally.rows,
        **({"not_used": not_used} if not_used else {}),
        "records": left,
        "dropped": dict(tally.dropped),
        **({"cleaned": tally.cleaned} if use.control_characters == "clean" else {}),
        "not_chosen": count - chosen,
        "phi": masked,
        "files": {"read": noted.read, "not_read": noted.not_read},
        "licence": use.licence or origin.licence or None,
        "repository": params.repository,
        "revision": params.revision,
    }


def data(params: DataParams, inputs: dict[str, Path], out: Path, machine: Any) -> dict[str, Any]:
    """Filter the rows of several sources, in mix order, and write the mix of what is left.

    `inputs`: folders of `source` stages as
    `source.<name>`, and as `heldout.<name>` those of the sets that no row may come from. The rows written name as their
    source the recipe's `<name>`. Questions become conversations where the kind is conversation, and any record a prompt where it is
    prompt. Raises `UserError` for another kind of record, and when nothing is left.
    """
    kind, items, uses = params.kind, list(params.mix), list(params.filters)
    sieve = Sieve(uses, dict(_named(inputs, "heldout.")), kind)
    paths = dict(_named(inputs, "source."))
    if len({item.name for item in items}) < len(items):
        raise UserError(f"a source stands twice in one mix: {', '.join(item.name for item in items)}")
    for item in items:
        _check_kind(item.name, read_kind(paths[item.name]), kind)
    spool, ordered = Spool(out / "kept.arrow", schemas()[kind]), {item.name: paths[item.name] for item in items}
    filtered = _filter(ordered, sift(ordered, sieve, _processes(machine)), spool, out)
    spool.close()
    ids = {name: each.ids for name, each in filtered.items()}
    by_filter = _by_filter([each.drops for each in filtered.values()], [use.name for use in uses])
    places = mix(ids, items, params.seed) if any(ids.values()) else []
    if not places:
        raise UserError(f"the mix of {', '.join(ids)} is empty: every row was dropped: {by_filter}")
    starts = dict(zip(ids, _starts([len(each) for each in ids.values()]), strict=True))
    taken = {each for every in ids.values() for each in every if REPEAT in each}
    copies = {at: repeated_id(ids[name][place], repeat, taken) for at, (name, place, repeat) in enumerate(places) if repeat}
    spool.write([starts[name] + place for name, place, _ in places], out / RECORDS, copies)
    spool.path.unlink()
    kept = Counter(each.name for each in places)
    logger.info("mix: %d records, %s, dropped %s", len(places), dict(kept), by_filter)
    return {
        "in": {name: len(each.ids) + each.drops.total() for name, each in filtered.items()},
        "dropped": by_filter,
        "dropped_by_source": {name: _by_filter([each.drops], []) for name, each in filtered.items()},
        "masked": _by_filter([each.masked for each in filtered.values()], []),
        "out": {name: kept[name] for name in ids},
        "repeats": dict(Counter(each.name for each in places if each.repeat)),
        "records": len(places),
    }


def _records(origin: sources.Source, use: SourceUse, out: Path, tally: Tally) -> Iterator[Record]:
    def read() -> Iterator[Any]:
        for row in origin.rows(use):
            yield row
            progress.write(out, tally.rows, None, "rows")

    with (out / DROPPED).open("w", encoding="utf-8") as dropped:
        yield from records(origin, read(), use, tally, lambda line: dropped.write(json.dumps(line) + "\n"))


def _keep(path: Path, use: SourceUse, kind: Kind, count: int) -> int:
    """Keep `max_rows` records of a file, chosen by a hash of their ids, and return how many are left."""
    if use.max_rows is None or count <= use.max_rows:
        return count
    places = set(choose([record.id for record in read_records(path)], use.max_rows, "source", use.seed))
    return write_records(path, (each for place, each in enumerate(read_records(path)) if place in places), kind)


def _rewritten(params: SourceParams, kind: Kind, count: int, tally: Tally, out: Path) -> tuple[int, dict[str, Any] | None]:
    """Apply what is done to every row of the source; return how many are left, and the counts of `phi` where it is on."""
    phi, system_prompt = params.phi, params.system_prompt
    if not (phi or system_prompt):
        return count, None
    found = rewrite(out / RECORDS, kind, system_prompt=system_prompt, phi=phi, dropped=out / DROPPED, masked=out / MASKED)
    tally.dropped.update(found.dropped)
    if phi is None:
        return found.records, None
    return found.records, {
        "action": phi.settings.get("action", "mask"),
        "rows": found.masked_rows,
        "kinds": dict(sorted(found.masked.items())),
        "dropped": sum(found.dropped.values()),
    }


def _named(inputs: Mapping[str, Path], prefix: str) -> list[tuple[str, Path]]:
    found = sorted((name.removeprefix(prefix), path) for name, path in inputs.items() if name.startswith(prefix))
    return [(name, path / RECORDS) for name, path in found]


def _check_kind(name: str, found: Kind, kind: Kind) -> None:
    if found not in READABLE[kind]:
        raise UserError(f"source {name!r} holds records of kind {found}; this mix takes {' or '.join(READABLE[kind])}")


def _filter(paths: Mapping[str, Path], sifted: Iterable[Sifted], spool: Spool, out: Path) -> dict[str, _Filtered]:
    """Put the rows that every filter keeps into the spool; return ids and counts by source.

    A row's line in `dropped.jsonl` or `masked.jsonl` holds names of filters, reasons and kinds, no text.
    """
    filtered = {name: _Filtered() for name in paths}
    done, total = 0, sum(pq.read_metadata(path).num_rows for path in paths.values())
    with (out / DROPPED).open("w", encoding="utf-8") as dropped, (out / MASKED).open("w", encoding="utf-8") as masked:
        for batch in sifted:
            into = filtered[batch.source]
            spool.add(batch.kept)
            for place, (rule, reason) in sorted(batch.dropped.items()):
                into.drops[rule, reason] += 1
                line = {"id": batch.ids[place], "source": batch.source, "filter": rule, "reason": reason}
                dropped.write(json.dumps(line) + "\n")
            for place, rules in sorted(batch.masked.items()):
                for rule, counts in rules.items():
                    into.masked.update({(rule, kind): count for kind, count in counts.items()})
                    line = {"id": batch.ids[place], "source": batch.source, "filter": rule, "masked": counts}
                    masked.write(json.dumps(line) + "\n")
            into.ids += [name for place, name in enumerate(batch.ids) if place not in batch.dropped]
            done += len(batch.ids)
            progress.write(out, done, total, "rows")
    return filtered


def _processes(machine: Any) -> int:
    """Return how many processes may work: `threads` of the cluster's row, or every core that this process may use."""
    return getattr(machine, "threads", None) or len(os.sched_getaffinity(0))


def _by_filter(counts: Sequence[Counter[tuple[str, str]]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Sum counts over sources as filter -> reason -> count; `names` are listed even where they counted nothing."""
    sums: dict[str, dict[str, int]] = defaultdict(dict, {name: {} for name in names})
    for each in counts:
        for (name, reason), count in each.items():
            sums[name][reason] = sums[name].get(reason, 0) + count
    return dict(sums)


def _starts(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:place]) for place in range(len(lengths))]
