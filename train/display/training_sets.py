"""What is in the training sets of a recipe: a table and pictures of lengths, for `rounds data stats`.

In: a plan. Out: what `manifest` would say of the sets that are finished, and the expected rows of the others.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import DataParams
from rounds.train.engine import store
from rounds.train.forecast import row_counts
from rounds.train.plan.pipeline import Plan
from rounds.train.reports.training_sets import set_names, training_set
from rounds.train.tokens.lengths import EDGES, edge

PICTURES = (".png", ".svg", ".pdf")
_BAR = 50
_SHOWN_SOURCES = 7  # more colours than this cannot be told apart


def sets(plan: Plan, root: Path) -> dict[str, dict[str, Any]]:
    """Return the finished training sets as the manifest tells them, by name."""
    found = {}
    for name, (stage, reader) in names(plan).items():
        folder, read = (store.folder(root, plan.stage(each)) if each else None for each in (stage, reader))
        if folder and store.done(folder):
            found[name] = training_set(folder, read if read and store.done(read) else None)
    return found


def names(plan: Plan) -> dict[str, tuple[str, str | None]]:
    """Return each set's data stage and the stage that makes tokens of it, under the manifest's names."""
    data = {stage.name: stage.key for stage in plan.stages if stage.kind.mixes}
    readers = {stage.name: stage.inputs["data"].key for stage in plan.stages if stage.kind.makes_tokens}
    return set_names(data, readers)


def table(plan: Plan, root: Path) -> Table:
    """List every source of every training set: counted where the set is finished, expected where it is not."""
    made = Table(box=None, header_style="bold")
    for heading in ("set", "source"):
        made.add_column(heading)
    for heading in (
        "rows",
        "filtered",
        "not in the mix",
        "repeats",
        "in the mix",
        "share",
        "dropped as tokens",
        "tokens",
        "mean",
        "longest",
    ):
        made.add_column(heading, justify="right")
    finished, wanted = sets(plan, root), row_counts.mixes(plan, root)
    for name, (stage, _) in names(plan).items():
        if name in finished:
            _counted(made, name, finished[name])
        else:
            rows = wanted.get(stage, {})
            params = plan.stage(stage).params
            assert isinstance(params, DataParams)
            for item in params.mix:
                count = rows.get(item.name)
                share = f"{count / max(1, sum(rows.values())):.1%}" if count is not None else ""
                most = "?" if count is None else f"≤ {count:,}"
                made.add_row(name, item.name, "", "", "", "", Text(most, "yellow"), Text(share, "yellow"), "", "", "", "")
    return made


def _counted(made: Table, name: str, found: Mapping[str, Any]) -> None:
    for source, each in found["sources"].items():
        lengths, gone = each["lengths"], sum(sum(reasons.values()) for reasons in each["dropped"].values())
        tokens = ("", "", "", "")
        if lengths:
            per_row = lengths["tokens"] / max(1, lengths["rows"]) / (2 if found["kind"] == "pair" else 1)
            tokens = (
                f"{sum(lengths['dropped'].values()):,}",
                f"{lengths['tokens']:,}",
                f"{per_row:,.0f}",
                f"{lengths['longest']:,}",
            )
        made.add_row(
            name,
            source,
            f"{each['rows']:,}",
            f"{gone:,}",
            f"{each['not_in_mix']:,}",
            f"{each['repeats']:,}",
            f"{each['out']:,}",
            f"{each['share']:.1%}",
            *tokens,
        )


def histogram(name: str, found: Mapping[str, Any]) -> Text:
    """Draw the lengths of a set's rows, in tokens, as bars of characters."""
    kind = "pairs (prompt and the longer answer)" if found["kind"] == "pair" else "conversations"
    drawn = Text(f"{name}: {kind} by tokens\n", style="bold")
    most = max(found["histogram"].values())
    for bucket in _all_buckets(found["histogram"]):
        count = found["histogram"].get(bucket, 0)
        bar = "█" * math.ceil(_BAR * count / most)
        drawn.append(f"  {bucket.replace('<=more', 'longer').replace('<=', '≤ '):>8} {count:>10,} ")
        drawn.append(f"{bar}\n", style="green")
    return drawn


def save(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the lengths of every set, by source, into a file. Raises `UserError` for a suffix that is no picture's."""
    if path.suffix not in PICTURES:
        raise UserError(f"{path}: a picture is saved as {', '.join(PICTURES)}")
    from matplotlib.figure import Figure

    drawn = {name: each for name, each in found.items() if each["histogram"]}
    figure = Figure(figsize=(8, 3 * len(drawn)), layout="constrained")
    for place, (name, each) in enumerate(drawn.items()):
        axes = figure.add_subplot(len(drawn), 1, place + 1)
        buckets = _all_buckets(each["histogram"])
        bottom = [0] * len(buckets)
        for label, counts in _largest(each):
            heights = [counts.get(bucket, 0) for bucket in buckets]
            axes.bar(
                [b.replace("<=more", "longer").replace("<=", "≤ ") for b in buckets],
                heights,
                bottom=bottom,
                label=label,
            )
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.set_title(f"{name}: {each['rows']:,} rows", loc="left", fontsize=10)
        axes.set_xlabel("tokens" if each["kind"] != "pair" else "tokens of prompt and the longer answer")
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _all_buckets(histogram: Mapping[str, int]) -> list[str]:
    """List the buckets from the shortest rows to the longest, those between without a row too."""
    low, high = min(map(edge, histogram)), max(map(edge, histogram))
    return [f"<={each}" for each in EDGES if low <= each <= high] + (["<=more"] if high == math.inf else [])


def _largest(found: Mapping[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Return the histograms of the largest sources, and that of all others together."""
    by_rows = sorted(found["sources"].items(), key=lambda item: -item[1]["out"])
    named = [(name, each["lengths"]["histogram"]) for name, each in by_rows if each["lengths"]]
    others: dict[str, int] = {}
    for _, counts in named[_SHOWN_SOURCES:]:
        for bucket in sorted(counts, key=edge):
            others[bucket] = others.get(bucket, 0) + counts[bucket]
    return [*named[:_SHOWN_SOURCES], *([(f"{len(named) - _SHOWN_SOURCES} others", others)] if others else [])]
