"""`rounds clean`: what the store holds, for whom, and the removal of what is named."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rounds.data_prep.errors import UserError
from rounds.train.commands import options
from rounds.train.commands.options import StoreRoot, told
from rounds.train.engine import runs, store
from rounds.train.launch import contents
from rounds.train.launch.contents import Held

_NOBODY = "no run"


@told
def clean(
    stages: Annotated[list[str] | None, typer.Argument(help="Stages to remove: name, key, or folder", show_default=False)] = None,
    root: StoreRoot = None,
    unwanted: Annotated[bool, typer.Option("--unwanted", help="Remove all that no recipe's last run wants any more")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed")] = False,
) -> None:
    """List what the store holds by run and what no run wants any more; remove the stages that are named.

    A stage that a running or queued one reads is never removed. What was removed, `rounds run` makes again.

        rounds clean

        rounds clean sft-3fa9c1d2e4b5f607

        rounds clean --unwanted --dry-run
    """
    root = options.store_of(root)
    if not root.is_dir():
        raise UserError(f"store {root}: no such folder")
    held = contents.held(root)
    if not stages and not unwanted:
        _list(root, held)
        return
    named = [_inside(root, runs.find(root, name)) for name in stages or ()]
    named += [each.folder for each in held if unwanted and not each.runs]
    named = list(dict.fromkeys(named))
    size = sum(contents.size_of(folder) for folder in named)
    for folder in named:
        options.console.print(f"{'would remove' if dry_run else 'removing'} {folder.name}", highlight=False)
    if not dry_run:
        contents.remove(root, named)
        contents.sweep(contents.leftovers(root))
    options.console.print(f"{len(named)} stages, {_bytes(size)}{' to remove' if dry_run else ' removed'}", highlight=False)


def _inside(root: Path, folder: Path) -> Path:
    """Return a stage's folder as one of the store. Raises `UserError` for one elsewhere, or a link."""
    if folder.is_symlink() or folder.resolve().parent != root.resolve():
        raise UserError(f"{folder} is no stage's folder in the store {root}")
    return root / folder.resolve().name


def _list(root: Path, held: list[Held]) -> None:
    table = Table(title=f"{root}: {len(held)} stages, {_bytes(sum(each.size for each in held))}", title_justify="left", box=None)
    for heading, right in (("run", False), ("stage", False), ("folder", False), ("state", False), ("size", True)):
        table.add_column(heading, overflow="fold", justify="right" if right else "left")
    names = sorted({run for each in held for run in each.runs})
    for run in [*names, _NOBODY]:
        own = [each for each in held if run in each.runs or (run == _NOBODY and not each.runs)]
        for place, each in enumerate(own):
            shared = f" (and {', '.join(other for other in each.runs if other != run)})" if len(each.runs) > 1 else ""
            first = f"{run}: {_bytes(sum(each.size for each in own))}" if place == 0 else ""
            table.add_row(first, f"{_name(each.folder)}{shared}", each.folder.name, each.state, _bytes(each.size))
    options.console.print(table)
    free = sum(each.size for each in held if not each.runs)
    if free:
        options.console.print(f"no recipe's last run wants {_bytes(free)} of it: `rounds clean --unwanted` removes that", highlight=False)
    left = contents.leftovers(root)
    if left:
        options.console.print(f"{len(left)} leftovers of attempts that were cut off go with the next removal", highlight=False)


def _name(folder: Path) -> str:
    try:
        return store.spec(folder).name
    except UserError:
        return "damaged"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
