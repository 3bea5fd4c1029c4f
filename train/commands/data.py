"""`rounds data`: make the training sets of a recipe, and look at their rows, as a model will read them and in numbers."""

from pathlib import Path
from typing import Annotated

import typer

from rounds.data_prep.errors import UserError
from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.config.cluster import load as load_cluster
from rounds.train.engine import store
from rounds.train.plan.pipeline import Plan

app = typer.Typer(
    help="Make the training sets of a recipe, and look at their rows.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)


@app.command("preview")
@told
def preview(
    file: RecipeFile,
    source: Annotated[str | None, typer.Option("--source", help="Name under `sources` in the recipe")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", help="Name under `prompts` in the recipe, instead of a source")] = None,
    pairs: Annotated[str | None, typer.Option("--pairs", help="Name of a round that makes pairs of its own answers, instead")] = None,
    count: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows")] = 3,
    overrides: Overrides = None,
    root: StoreRoot = None,
) -> None:
    """Show rows of a source, of a set of prompts, or of a round's own pairs, as a model will read them, what it learns from in green.

    Shows what is left after filters and mix where that stage is finished, else rows as they come from the source, with
    the reasons of those among the first that do not fit. Where no row fits, says why, and which column may be meant. Where
    no colours are to be had, what is learnt stands between « and ».

        rounds data preview recipes/quickstart.yaml --source facts

        rounds data preview my.yaml --prompts open

        rounds data preview my.yaml --pairs second
    """
    if sum(each is not None for each in (source, prompts, pairs)) != 1:
        raise UserError("give one of --source NAME, --prompts NAME and --pairs ROUND: whose rows to show")
    root = root or store.default_root()
    plan = plan_of(file, overrides, root)
    _refuse_damaged(file, overrides, root, plan)
    from rounds.train.display import first_rows

    shown = ((source, first_rows.rows), (prompts, first_rows.prompts), (pairs, first_rows.own_pairs))
    found = next(read(plan, root, name, count) for name, read in shown if name is not None)
    from rounds.train.display import rows as rendered  # brings torch, for which a mistyped name does not wait

    using = rendered.tokenizer(plan, root)
    console = options.console
    console.print(f"{len(found.records)} rows {found.found}", style="bold", highlight=False)
    if found.not_used:
        console.print(f"not used: {found.not_used}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if found.unfit:
        console.print(found.unfit, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if isinstance(using, str):
        console.print(f"roles instead of tokens: {using}", style="yellow", highlight=False)
    for record in found.records:
        console.print()
        text = rendered.shown(record, using, not console.is_terminal, found.max_length)
        console.print(text, highlight=False, soft_wrap=True)


@app.command("build")
@told
def build(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    fetched: Annotated[Path | None, typer.Option("--offline", metavar="FOLDER", help="Use only what `rounds fetch` put there")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would run")] = False,
) -> None:
    """Make all training sets of a recipe, rows and tokens, and stop before anything is trained.

    `rounds run` goes on from there. For one set, or another stage: `rounds run RECIPE --until data.sft`.

        rounds data build recipes/quickstart.yaml
    """
    from rounds.train.commands import run

    run.carry_out(file, overrides, cluster_file, root, _sets, fetched=fetched, dry_run=dry_run)
    if not dry_run and load_cluster(cluster_file).kind != "slurm":
        from rounds.train.display import training_sets

        options.console.print(training_sets.table(plan_of(file, overrides, store_of(root, cluster_file)), store_of(root, cluster_file)))


def _sets(plan: Plan) -> Plan:
    return plan.until([stage.name for stage in plan.stages if stage.kind.mixes or stage.kind.makes_tokens])


def _refuse_damaged(file: Path, overrides: list[str] | None, root: Path, plan: Plan) -> None:
    options.refuse_damaged(file, overrides, None, root, [stage for stage in plan.stages if stage.kind.about_rows])


@app.command("stats")
@told
def stats(
    file: RecipeFile,
    overrides: Overrides = None,
    root: StoreRoot = None,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Draw the lengths into a .png, .svg or .pdf")] = None,
) -> None:
    """Show what is in each training set: rows, what was dropped, shares, tokens, and a picture of lengths.

    `rows` are the source's; `filtered` were dropped by a filter, `not in the mix` left out by a cap or a share; `repeats` are further
    copies by `epochs`; `in the mix` is the set. Of it `dropped as tokens` are too long or left nothing to learn. `tokens` count a
    conversation once and a pair's prompt twice, as it is trained on; `mean` and `longest` are per conversation, or per answer with its
    prompt. Sets that are not finished are told as far as published sizes go.

        rounds data stats recipes/quickstart.yaml --save lengths.png
    """
    root = root or store.default_root()
    plan = plan_of(file, overrides, root)
    _refuse_damaged(file, overrides, root, plan)
    from rounds.train.display import training_sets

    options.console.print(training_sets.table(plan, root))
    made = training_sets.sets(plan, root)
    if lacking := [name for name in training_sets.names(plan) if name not in made]:
        options.console.print(
            f"not made yet, so at most as many rows as are published: {', '.join(lacking)}. rounds data build {file} makes them",
            style="yellow",
            highlight=False,
        )
    found = {name: each for name, each in made.items() if each["histogram"]}
    for name, each in found.items():
        options.console.print(training_sets.histogram(name, each))
    if save and not found:
        options.console.print("no lengths yet: they are counted when a set is made into tokens", style="yellow")
    elif save:
        training_sets.save(found, save)
        options.console.print(f"saved {save}", highlight=False)
