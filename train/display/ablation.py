"""What the command line shows of an ablation: what its variants share before it runs, and what came out after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rounds.train.engine import store
from rounds.train.engine.graph import Stage
from rounds.train.plan.ablation import AblationPlan

_MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "same policy": ("=", "")}


def plan(console: Console, made: AblationPlan, root: Path, gpu_hours: Mapping[str, float | None] | None = None) -> None:
    """Print every variant with its stages, and what the whole costs as a share of running each alone. Reads the store.

    `gpu_hours` has the forecast of every training and evaluation stage by name: None where it is not known.
    """
    users = made.users()
    records = {stage.key: store.done(store.folder(root, stage)) for stage in made.shared}
    table = Table(title=f"{made.name}: {len(made.ablation.all())} variants", title_justify="left", box=None, header_style="bold")
    for heading in ("variant", "stages", "shared", "its own", "to do"):
        table.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    hours = {stage.key: gpu_hours.get(stage.name) for stage in made.shared} if gpu_hours else {}
    if gpu_hours:
        table.add_column("GPU-hours", justify="right", no_wrap=True)
    table.add_column("about")
    alone: list[Stage] = []
    for name, variant in made.ablation.all().items():
        stages = made.stages_of(name)
        alone += stages
        own = sum(len(users[stage.key]) == 1 for stage in stages)
        todo = sum(records[stage.key] is None for stage in stages)
        label = f"{name} (baseline)" if name == made.ablation.baseline else name
        trained = [f"{sum(hours[stage.key] or 0 for stage in stages):,.1f}"] if gpu_hours else []
        table.add_row(label, str(len(stages)), str(len(stages) - own), str(own), str(todo), *trained, variant.about)
    console.print(table)
    shared = sum(len(names) > 1 for names in users.values())
    console.print(
        f"{len(made.shared)} stages in all, {shared} of them shared, and the report; each variant alone: {len(alone)}. "
        f"Cost: {_share(len(made.shared), len(alone))} in stages.",
        highlight=False,
        soft_wrap=True,
    )
    if gpu_hours:
        all_hours, apart = sum(each or 0 for each in hours.values()), sum(hours[stage.key] or 0 for stage in alone)
        unknown = sorted({name.partition(".")[0] for name, each in gpu_hours.items() if each is None})
        left_out = f" (not known, so left out: {', '.join(unknown)})" if unknown else ""
        console.print(
            f"Training and evaluation: {all_hours:,.1f} GPU-hours; each variant alone {apart:,.1f}: {_share(all_hours, apart)}{left_out}.",
            highlight=False,
            soft_wrap=True,
        )
    for field, unit in (("seconds", "stage-seconds"), ("cpu_seconds", "seconds of processor time")):
        taken = {key: getattr(record, field, None) for key, record in records.items()}
        if all(each is not None for each in taken.values()):
            spent, apart = sum(taken[s.key] or 0 for s in made.shared), sum(taken[s.key] or 0 for s in alone)
            console.print(
                f"Measured: {spent:,.0f} {unit}; each variant alone {apart:,.0f}: {_share(spent, apart)}.", highlight=False, soft_wrap=True
            )


def summary(console: Console, made: AblationPlan, root: Path, seconds: float) -> None:
    """Print the differences to the baseline, and where the page and the table are."""
    folder = store.folder(root, made.stages[-1])
    counts = store.counts(folder)
    if counts:
        console.print(_differences(made, counts["differences"]))
        console.print("▲ ▼ better or worse after Holm's correction; ≈ cannot be told apart", style="dim", highlight=False)
        share = _share(counts["seconds"], counts["seconds_alone"])
        console.print(
            f"{counts['seconds']:,.0f} stage-seconds, {share} of running each variant alone; this call {seconds:.1f} s", highlight=False
        )
        for name, why in counts["missing"].items():
            console.print(f"{name} is missing: {why}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        print(f"page:  {folder / 'ablation.html'}")
        print(f"table: {folder / 'ablation.csv'}")


def _differences(made: AblationPlan, differences: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        title=f"{made.name}: differences to {made.ablation.baseline}",
        title_justify="left",
        box=None,
        header_style="bold",
    )
    table.add_column("variant", no_wrap=True)
    metrics = list(dict.fromkeys(metric for found in differences.values() for metric in found))
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    for name, found in differences.items():
        table.add_row(name, *(_cell(*found[metric]) if metric in found else "-" for metric in metrics))
    return table


def _cell(difference: float, verdict: str) -> Text:
    mark, style = _MARKS.get(verdict, ("≈", ""))
    return Text(f"{difference:+.3f} {mark}", style)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "100 %"
