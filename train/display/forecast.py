"""What the command line shows of a forecast: memory of a device by part, time, and what to change."""

from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from rounds.train.config.cluster import Cluster
from rounds.train.engine import store
from rounds.train.forecast import advice, disk, forecast
from rounds.train.plan.pipeline import Plan

_PARTS = {
    "weights": "weights",
    "grads": "gradients",
    "optim.": "optimizer",
    "activ.": "activations",
    "logits": "logits",
    "ref.": "reference",
    "comm.": "communication",
    "step": "step",
}
"""Heading -> part of `train.memory.Memory`."""


def plan(console: Console, made: Plan, cluster: Cluster, root: Path) -> None:
    """Print what training needs: GiB of one device by part, and time, where the row says which GPUs it has."""
    found, model, origin = forecast.forecasts(made, cluster, root)
    table = Table(
        title=f"\nMemory of one device in GiB, and time. {model.parameters:,} parameters, counted on the skeleton of {origin}",
        title_justify="left",
        box=None,
        header_style="bold",
    )
    for heading in ("stage", "devices", "batch", *_PARTS, "peak", "of", "tokens/s", "hours", "GPU-hours"):
        table.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for each in found:
        if not each.micro_batch:  # refused: there is nothing to say but why
            continue
        space = advice.room(each.machine)
        table.add_row(
            each.stage,
            f"{each.gpus}x{each.machine.gpu or each.machine.device}",
            f"{each.micro_batch}x{each.accumulation}",
            *(f"{getattr(each.need, part) / advice.GIB:.1f}" for part in _PARTS.values()),
            Text(f"{each.need.peak / advice.GIB:.1f}", "red" if each.advice else "green"),
            "-" if space is None else f"{space / advice.GIB:.1f}",
            "-" if each.tokens_per_second is None else f"{each.tokens_per_second:,.0f}",
            "-" if each.hours is None else f"{each.hours:.2f}",
            "-" if each.gpu_hours is None else f"{each.gpu_hours:,.1f}",
        )
    console.print(table)
    room = disk.needed(store.unfinished(root, made.stages), root, cluster)
    if room:
        console.print(f"{root} needs about {decimal(room)} for policies and checkpoints", highlight=False, markup=False)
    for each in found:
        if each.advice:
            console.print(f"{each.stage}: {each.advice}", style="red", highlight=False, markup=False)
