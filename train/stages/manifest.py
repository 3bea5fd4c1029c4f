"""Stage `manifest`: what the training rows are, for a person who must answer for them.

In: every stage of the run that has to do with rows (`source.*`, `data.*`, `prompts.*`, `pack`, `tokenize.*`), by name. Out:
`manifest.json` and `DATA_CARD.md`, which say the same: where each source came from and under which licence, what every
filter took out of it, what was masked, how many rows and tokens of it are trained on, what was found of each benchmark,
and what to know before use. Nothing of a row's text is in them.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rounds.data_prep import licences
from rounds.data_prep.schema import SourceParams
from rounds.train.config.cluster import Machine
from rounds.train.engine import store
from rounds.train.engine.params import ManifestParams
from rounds.train.engine.records import MANIFEST, Counts
from rounds.train.reports import markdown
from rounds.train.reports.training_sets import set_names, training_set

SCHEMA = 1
"""Raised when a field of manifest.json changes its meaning or goes."""


def run(params: ManifestParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Read what the stages counted, and write it down twice."""
    made = manifest(params, inputs)
    trained = [each for each in made["sets"].values() if each["kind"] != "prompt"]
    store.write_json(out / MANIFEST, made)
    (out / "DATA_CARD.md").write_text(_card(made), encoding="utf-8")
    return {
        "sources": len(made["sources"]),
        "records": sum(each["rows"] if each["trained_rows"] is None else each["trained_rows"] for each in trained),
        "tokens": sum(each["tokens"] or 0 for each in made["sets"].values()),
        "overlaps": made["overlaps"],
        "warnings": len(made["warnings"]),
    }


def manifest(asked: ManifestParams, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Put together what is known of every source and every training set."""
    data = {name: path for name, path in inputs.items() if store.spec(path).kind.mixes}
    readers = {name: store.inputs(path)["data"].name for name, path in inputs.items() if store.spec(path).kind.makes_tokens}
    named = set_names({name: path.name for name, path in data.items()}, readers)
    sets = {name: training_set(data[stage], inputs[reader] if reader else None) for name, (stage, reader) in named.items()}
    sources = {
        name.removeprefix("source."): _source(name.removeprefix("source."), path, asked, sets)
        for name, path in inputs.items()
        if store.spec(path).kind.reads_source
    }
    overlaps = Counter()
    for name in {stage: name for name, (stage, _) in named.items()}.values():  # of sets of the same rows, once
        overlaps.update(sets[name]["overlaps"])
    return {
        "schema": SCHEMA,
        "recipe": asked.name,
        "description": asked.description,
        "sources": sources,
        "sets": sets,
        "overlaps": dict(sorted(overlaps.items())),
        "not_compared_with": [*asked.missing_benchmarks, *asked.unknown_tasks],
        "warnings": _warnings(asked, sources, sets),
    }


def _source(name: str, folder: Path, asked: ManifestParams, sets: Mapping[str, Any]) -> dict[str, Any]:
    spec, counts = store.spec(folder), store.counts(folder)
    params, known = spec.record, asked.sources[name]
    assert isinstance(params, SourceParams)
    licence = known.licence or counts["licence"]
    terms = licences.terms(licence)
    read = [each for each, made in sets.items() if name in made["sources"]]
    asked_in = [each for each in read if sets[each]["kind"] == "prompt"]
    return {
        "source": params.use.source,
        "split": params.use.split,
        "repository": counts["repository"],
        "origin": known.origin or None,
        "revision": counts["revision"],
        "verified": known.verified,
        "digest": spec.inputs["path"].digest if "path" in spec.inputs else None,
        "licence": licence,
        "conditions": terms.said() if terms else None,
        "trained_on_in": [each for each in read if sets[each]["kind"] != "prompt"],
        **({"asked_in": asked_in} if asked_in else {}),
        "held_out_from": [each for each, made in sets.items() if name in made["compared_with"]],
        "rows": counts["rows"],
        "dropped": counts["dropped"],
        "not_chosen": counts["not_chosen"],
        "records": counts["records"],
        "phi": counts.get("phi"),  # absent where a set was fetched before there was a choice
        "system_prompt": params.system_prompt,
    }


def _warnings(asked: ManifestParams, sources: Mapping[str, Any], sets: Mapping[str, Any]) -> list[str]:
    said = [
        line
        for name, each in sources.items()
        if each["trained_on_in"] or "asked_in" in each
        for line in licences.warnings(name, each["licence"])
    ]
    said += [
        f"{name}: its repository, commit or columns could not be checked when its source was written"
        for name, each in sources.items()
        if not each["verified"] and each["digest"] is None
    ]
    said += [
        f"{name}: its rows were not compared with any held-out row"
        for name, each in sets.items()
        if not any(use["name"] == "decontaminate" for use in each["filters"])
    ]
    if asked.missing_benchmarks:
        said.append(f"not compared with {', '.join(asked.missing_benchmarks)}: their rows were not at hand")
    if asked.unknown_tasks:
        said.append(f"not compared with the rows that lm-eval's {', '.join(asked.unknown_tasks)} bring themselves")
    private = [name for name, each in sources.items() if each["source"] == "file" and each["phi"] is None]
    if private:
        said.append(f"{', '.join(private)}: brought as files, and not searched for what tells who a person is")
    return said


def _card(made: Mapping[str, Any]) -> str:
    return markdown.render("data_card.md.jinja", bars=_bars, **made)


def _bars(histogram: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """Return a histogram as (length, rows, bar)."""
    most = max(histogram.values(), default=1)
    return [(name.replace("<=more", "longer"), count, "#" * max(1, round(30 * count / most))) for name, count in histogram.items()]
