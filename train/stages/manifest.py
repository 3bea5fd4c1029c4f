"""Stage `manifest`: what the training rows are, for a person who must answer for them.

In: every stage of the run that has to do with rows (`source.*`, `data.*`, `pack`, `tokenize.*`), by name. Out:
`manifest.json` and `DATA_CARD.md`, which say the same: where each source came from and under which licence, what every
filter took out of it, what was masked, how many rows and tokens of it are trained on, what was found of each benchmark,
and what to know before use. Nothing of a row's text is in them.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rounds.data_prep import licences
from rounds.data_prep.schema import Section
from rounds.train.config.cluster import Row
from rounds.train.engine import store
from rounds.train.tokens.lengths import edge

SCHEMA = 1
"""Raised when a field of manifest.json changes its meaning or goes."""
_OVERLAPS = ("heldout_prompt_", "overlaps_")


class Known(Section):
    """What the recipe and the registry say of a source beyond what its stage does."""

    licence: str | None
    verified: bool
    origin: str


class Params(Section):
    name: str
    description: str
    sources: dict[str, Known]
    missing_benchmarks: tuple[str, ...]
    unknown_tasks: tuple[str, ...]


def run(params: dict, inputs: dict[str, Path], out: Path, machine: Row) -> dict[str, Any]:
    """Read what the stages counted, and write it down twice."""
    asked = Params.model_validate(params)
    made = manifest(asked, inputs)
    store.write_json(out / "manifest.json", made)
    (out / "DATA_CARD.md").write_text(_card(made), encoding="utf-8")
    return {
        "sources": len(made["sources"]),
        "records": sum(
            each["rows"] if each["trained_rows"] is None else each["trained_rows"] for each in made["sets"].values()
        ),
        "tokens": sum(each["tokens"] or 0 for each in made["sets"].values()),
        "overlaps": made["overlaps"],
        "warnings": len(made["warnings"]),
    }


def manifest(asked: Params, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Put together what is known of every source and every training set."""
    data = {name: path for name, path in inputs.items() if store.spec(path)["function"] == "data"}
    readers = {name: store.inputs(path)["data"].name for name, path in inputs.items()
               if store.spec(path)["function"] in ("pack", "tokenize")}  # fmt: skip
    named = set_names({name: path.name for name, path in data.items()}, readers)
    sets = {name: training_set(data[stage], inputs[reader] if reader else None)
            for name, (stage, reader) in named.items()}  # fmt: skip
    sources = {name.removeprefix("source."): _source(name.removeprefix("source."), path, asked, sets)
               for name, path in inputs.items() if store.spec(path)["function"] == "source"}  # fmt: skip
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


def _source(name: str, folder: Path, asked: Params, sets: Mapping[str, Any]) -> dict[str, Any]:
    spec, counts = store.spec(folder), (store.done(folder) or {})["counts"]
    use, known = spec["params"]["use"], asked.sources[name]
    licence = known.licence or counts["licence"]
    terms = licences.terms(licence)
    return {
        "source": use["source"],
        "split": use["split"],
        "repository": counts["repository"],
        "origin": known.origin or None,
        "revision": counts["revision"],
        "verified": known.verified,
        "digest": spec["inputs"].get("path", {}).get("digest"),
        "licence": licence,
        "conditions": terms.said() if terms else None,
        "trained_on_in": [each for each, made in sets.items() if name in made["sources"]],
        "held_out_from": [each for each, made in sets.items() if name in made["compared_with"]],
        "rows": counts["rows"],
        "dropped": counts["dropped"],
        "not_chosen": counts["not_chosen"],
        "records": counts["records"],
        "phi": counts.get("phi"),  # absent where a set was fetched before there was a choice
        "system_prompt": spec["params"].get("system_prompt"),
    }


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
    spec, counts = store.spec(folder), (store.done(folder) or {})["counts"]
    lengths = (store.done(tokens) or {})["counts"]["by_source"] if tokens else {}
    sources, all_tokens = {}, sum(each["tokens"] for each in lengths.values())
    for name, came in counts["in"].items():
        found, out = counts["dropped_by_source"].get(name, {}), counts["out"].get(name, 0)
        dropped = {use["name"]: found[use["name"]] for use in spec["params"]["filters"] if use["name"] in found}
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
        "kind": spec["params"]["kind"],
        "filters": spec["params"]["filters"],
        "compared_with": sorted(key.removeprefix("heldout.") for key in spec["inputs"] if key.startswith("heldout.")),
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


def _warnings(asked: Params, sources: Mapping[str, Any], sets: Mapping[str, Any]) -> list[str]:
    said = [line for name, each in sources.items() if each["trained_on_in"]
            for line in licences.warnings(name, each["licence"])]  # fmt: skip
    said += [f"{name}: its repository, commit or columns could not be checked when its source was written"
             for name, each in sources.items() if not each["verified"] and each["digest"] is None]  # fmt: skip
    said += [f"{name}: its rows were not compared with any held-out row" for name, each in sets.items()
             if not any(use["name"] == "decontaminate" for use in each["filters"])]  # fmt: skip
    if asked.missing_benchmarks:
        said.append(f"not compared with {', '.join(asked.missing_benchmarks)}: their rows were not at hand")
    if asked.unknown_tasks:
        said.append(f"not compared with the rows that lm-eval's {', '.join(asked.unknown_tasks)} bring themselves")
    private = [name for name, each in sources.items() if each["source"] == "file" and each["phi"] is None]
    if private:
        said.append(f"{', '.join(private)}: brought as files, and not searched for what tells who a person is")
    return said


def _card(made: Mapping[str, Any]) -> str:
    environment = Environment(loader=PackageLoader("rounds.train", "reports"), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "\\|")
    environment.filters["bars"] = _bars
    return environment.get_template("data_card.md.jinja").render(**made)


def _bars(histogram: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """Return a histogram as (length, rows, bar)."""
    most = max(histogram.values(), default=1)
    return [(name.replace("<=more", "longer"), count, "#" * max(1, round(30 * count / most)))
            for name, count in histogram.items()]  # fmt: skip
