"""One training set in numbers, from the folders of its stages: rows, reasons, sources, tokens, lengths."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rounds.data_prep.schema import DataParams
from rounds.train.engine import store
from rounds.train.tokens.lengths import edge

_OVERLAPS = ("heldout_prompt_", "overlaps_")


def set_names(data: Mapping[str, str], readers: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Return for each training set its data stage and the stage that makes tokens of it, if any does.

    `data` gives the key or folder of each data stage, `readers` that of the rows that each `pack` or `tokenize` reads. Rounds
    on the same rows share one data stage; where they differ in `max_length` each has its own tokens, and is a set of its own.
    """
    found: dict[str, tuple[str, str | None]] = {}
    for stage, rows in data.items():
        mine = [name for name, read in readers.items() if read == rows]
        if len(mine) < 2:
            found[stage.removeprefix("data.")] = (stage, mine[0] if mine else None)
        else:
            found |= {name.removeprefix("tokenize."): (stage, name) for name in mine}
    return found


def training_set(folder: Path, tokens: Path | None) -> dict[str, Any]:
    """Say what became of each source on its way into a training set: a finished data stage, and its tokens if there are any."""
    spec, counts = store.spec(folder), store.counts(folder)
    params = spec.record
    assert isinstance(params, DataParams)
    lengths = store.counts(tokens)["by_source"] if tokens else {}
    sources, all_tokens = {}, sum(each["tokens"] for each in lengths.values())
    for name, came in counts["in"].items():
        found, out = counts["dropped_by_source"].get(name, {}), counts["out"].get(name, 0)
        dropped = {use.name: found[use.name] for use in params.filters if use.name in found}
        repeats = counts["repeats"].get(name, 0)
        gone = sum(sum(reasons.values()) for reasons in dropped.values())
        sources[name] = {
            "rows": came,
            "dropped": dropped,
            "not_in_mix": came - gone - (out - repeats),
            "repeats": repeats,
            "out": out,
            "share": round(out / counts["records"], 4),
            "trained_rows": lengths[name]["rows"] if name in lengths else None,
            "token_share": round(lengths[name]["tokens"] / max(1, all_tokens), 4) if name in lengths else None,
            "lengths": lengths.get(name),
        }
    return {
        "kind": params.kind,
        "filters": [use.stored() for use in params.filters],
        "compared_with": sorted(key.removeprefix("heldout.") for key in spec.inputs if key.startswith("heldout.")),
        "sources": sources,
        "rows": counts["records"],
        "masked": counts["masked"],
        "overlaps": _overlaps(counts["dropped"].get("decontaminate", {})),
        "trained_rows": sum(each["rows"] for each in lengths.values()) if tokens else None,
        "tokens": all_tokens if tokens else None,
        "histogram": _sum([each["histogram"] for each in lengths.values()]),
    }


def _overlaps(reasons: Mapping[str, int]) -> dict[str, int]:
    """Count what was taken out by the benchmark that it was found in."""
    found = Counter()
    for reason, count in reasons.items():
        prefix = next((each for each in _OVERLAPS if reason.startswith(each)), "")
        found[reason.removeprefix(prefix)] += count
    return dict(sorted(found.items()))


def _sum(histograms: list[Mapping[str, int]]) -> dict[str, int]:
    total = Counter()
    for each in histograms:
        total.update(each)
    return {name: total[name] for name in sorted(total, key=edge)}
