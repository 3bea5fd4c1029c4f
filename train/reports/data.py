"""The report's part on data: the sources with their licences, and each training set in numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rounds.data_prep.schema import SourceParams
from rounds.train.reports import figures
from rounds.train.reports.steps import Finished, Step
from rounds.train.tokens.lengths import edge


def source_rows(stages: Mapping[str, Finished], recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List where rows came from, and which stages read them for what."""
    found = []
    for stage in stages.values():
        params = stage.spec.record
        if not isinstance(params, SourceParams):
            continue
        readers = [
            (other, name)
            for other in stages.values()
            for name, entry in other.spec.stages().items()
            if entry == stage.folder.name and (other.kind.mixes or other.kind.measures)
        ]
        mixed = [other for other, name in readers if name.startswith("source.")]
        path = stage.spec.inputs.get("path")
        name = stage.name.removeprefix("source.")
        stated = recipe.get("sources", {}).get(name, {}).get("licence")
        found.append({
            "name": name,
            "licence": stated or stage.counts.get("licence"),
            "use": params.use,
            "counts": stage.counts,
            "trained": [other.name.removeprefix("data.") for other in mixed if not other.kind.asks],
            "asked": [other.name.removeprefix("prompts.") for other in mixed if other.kind.asks],
            "evaluated": any(other.kind.measures for other, _ in readers),
            "digest": (path.digest or "")[:12] if path else "",
        })  # fmt: skip
    return sorted(found, key=lambda each: (not each["trained"], each["evaluated"]))


def set_rows(steps: Sequence[Step], stages: Mapping[str, Finished]) -> list[dict[str, Any]]:
    """Follow every training set from its sources through filters, mix and tokeniser; rounds may share one."""
    by_folder = {stage.folder.name: stage for stage in stages.values()}
    found: dict[str, dict[str, Any]] = {}
    for step in steps:
        tokens = by_folder.get(step.stage.input("rows") or step.stage.input("pairs") or "")
        data = by_folder.get((tokens.input("data") if tokens else None) or "")
        if tokens is None or data is None:
            continue
        if tokens.folder.name in found:
            found[tokens.folder.name]["steps"].append(step.name)
            continue
        rows = [_set_row(name, data.counts) for name in data.counts.get("in", {})]
        lengths = sorted(tokens.counts.get("length_histogram", {}).items(), key=lambda item: edge(item[0]))
        label = f"Conversations of {step.name} by length"
        found[tokens.folder.name] = {
            "steps": [step.name],
            "rows": rows,
            "most": max((max(row["in"], row["out"] + row["dropped"]) for row in rows), default=0),
            "counts": tokens.counts,
            "max_length": tokens.spec.params.get("max_length"),
            "lengths": Markup(figures.histogram(label, [(name.replace("<=", "≤"), n) for name, n in lengths])) if lengths else None,
        }
    return list(found.values())


def _set_row(name: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    filters = counts.get("dropped_by_source", {}).get(name, {})
    drops = [(f, reason, n) for f, reasons in filters.items() for reason, n in reasons.items()]
    dropped, came, out = sum(n for _, _, n in drops), counts["in"][name], counts["out"].get(name, 0)
    left_out = came - dropped - out + counts.get("repeats", {}).get(name, 0)
    return {"name": name, "in": came, "drops": drops, "dropped": dropped, "left_out": left_out, "out": out}
