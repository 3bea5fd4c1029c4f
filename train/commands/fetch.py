"""`rounds fetch`: download everything that a recipe needs, for a machine without internet."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rounds.data_prep.errors import UserError
from rounds.train.commands import options
from rounds.train.commands.options import Overrides, RecipeFile, told
from rounds.train.engine import store
from rounds.train.offline import fetch as fetching
from rounds.train.offline import folder, needs


@told
def fetch(
    file: RecipeFile,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where everything goes", show_default=False)],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and fetch nothing")] = False,
) -> None:
    """Download every dataset, model and evaluation set of a recipe (or ablation) into one folder, with a list of digests.

    Run it where there is internet, take the folder to the machine that has none (rsync -a), and run with --offline
    there. Stopped, it goes on where it was; a second recipe can be fetched into the same folder. Gated repositories need
    HF_TOKEN in the environment; it is never written anywhere. Your own files are not touched.

        rounds fetch recipes/med42-v2-8b.yaml --to /media/disk/med42

        rounds run recipes/med42-v2-8b.yaml --offline /media/disk/med42
    """
    plan = options.plan_of(file, overrides, store.default_root(), read_files=False)
    name = plan.recipe.name
    wanted = needs.of(plan.stages)
    if not wanted:
        options.console.print(f"{name} needs nothing from the hub")
        return
    to = to.resolve()
    fetching.prepare(to)
    found = fetching.survey(wanted, to)
    options.console.print(_table(found))
    if dry_run:
        return
    for need in wanted:
        entry = fetching.fetch(need, to, name)
        size = sum(each["size"] for each in entry["files"].values())
        options.console.print(f"{need.kind} {need.name}: {len(entry['files'])} files, {fetching.gib(size)}", highlight=False)
    options.console.print("\nopening everything without the hub:")
    well = fetching.rehearse(file, overrides or (), to, lambda line: options.console.print("  " + line, markup=False, highlight=False))
    if not well:
        raise UserError("all is fetched, but not all of it can be used: mend the recipe (see the lines with PROBLEM), then fetch again")
    options.console.print(f"\nlisted in {to / folder.LIST}. Next: rounds run {file} --offline {to}", highlight=False)


def _table(found: dict[needs.Need, fetching.Estimate]) -> Table:
    table, judged = Table(box=None, header_style="bold"), any(need.licence for need in found)
    for heading in ("kind", "name", "revision", "files", "size", "to fetch", "for", *(["licence"] if judged else [])):
        table.add_column(heading, overflow="fold")
    for need, each in found.items():
        stages = ", ".join(need.stages[:3]) + (", ..." if len(need.stages) > 3 else "")
        table.add_row(
            need.kind,
            need.name,
            (need.revision or "-")[:10],
            str(each.files),
            fetching.gib(each.size),
            fetching.gib(each.to_fetch),
            stages,
            *([need.licence] if judged else []),
        )
    return table
