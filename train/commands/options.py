"""What the subcommands share: the options of a recipe, a store and a cluster, and how a mistake is told."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rounds.data_prep.errors import UserError
from rounds.train.config import cluster, recipe, shipped
from rounds.train.engine import damage, store
from rounds.train.engine.graph import Asset, Stage
from rounds.train.launch import interrupts
from rounds.train.offline import folder, needs
from rounds.train.plan import ablation, pipeline
from rounds.train.plan.pipeline import Plan

# Square brackets and colons are the user's own words, never markup; in a log nothing is to be cut at 80 columns.
console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)


def tell(error: Exception) -> typer.Exit:
    """Print the message of a mistake, and return what ends the command with exit code 1."""
    errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(1)


def named(kind: shipped.Kind) -> Callable[[typer.Context, Path | None], Path | None]:
    """Return what makes a file of a path or of the name of a shipped one, where a command reads its arguments."""

    def file_of(context: typer.Context, name: Path | None) -> Path | None:
        if name is None or context.resilient_parsing:  # while a shell completes a line
            return name
        try:
            return shipped.find(name, kind)
        except (UserError, OSError) as error:
            raise tell(error) from None

    return file_of


RecipeFile = Annotated[
    Path,
    typer.Argument(help="Recipe, such as recipes/quickstart.yaml", show_default=False, callback=named("recipe")),
]
AblationFile = Annotated[
    Path,
    typer.Argument(help="Ablation, such as recipes/ablations/quickstart.yaml", show_default=False, callback=named("ablation")),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change one field of the recipe; may be repeated"),
]
StoreRoot = Annotated[Path | None, typer.Option("--store", help="Where stages are kept [env ROUNDS_STORE, else ./store]")]
ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        help="Where and how fast stages run, such as recipes/clusters/local.yaml",
        callback=named("cluster file"),
    ),
]


def told(command: Callable) -> Callable:
    """Turn a `UserError` into its message and exit code 1, and an interruption into a hint."""

    @wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except PermissionError as error:
            raise tell(_of_store(error) or error) from None
        except (UserError, OSError) as error:
            raise tell(error) from None
        except KeyboardInterrupt:
            errors.print(f"\n{interrupts.LINE}" if errors.is_terminal else interrupts.LINE, style="yellow")
            raise typer.Exit(interrupts.EXIT_CODE) from None

    return wrapped


def _of_store(error: PermissionError) -> UserError | None:
    """Say what a system's refusal means, where it is about a file of a store."""
    path = Path(str(error.filename)).absolute()
    root = store.root_above(path.parent)
    there = next(each for each in (path, *path.parents) if os.access(each, os.F_OK))
    return store.no_access(root, there) if root else None


def store_of(root: Path | None, cluster_file: Path | None = None) -> Path:
    """Return the store: as given, else the cluster file's, else ROUNDS_STORE, else ./store. Raises `UserError` for a file."""
    named = cluster.load(cluster_file).store if cluster_file and root is None else None
    found = root or (Path(named) if named else store.default_root())
    if found.exists() and not found.is_dir():
        raise UserError(f"store {found}: not a folder; name one with --store, or one that is to be made")
    return found


def command_line(command: str, file: Path, overrides: list[str] | None, cluster_file: Path | str | None, root: Path, *more: str) -> str:
    """Write a command for a person to repeat, with the options that make it mean the same run."""
    words = ["rounds", *command.split(), shipped.name_of(file), *more]
    words += [word for override in overrides or () for word in ("--set", override)]
    words += ["--cluster", shipped.name_of(cluster_file)] if cluster_file else []
    words += ["--store", str(root)] if root.resolve() != store_of(None, Path(cluster_file) if cluster_file else None).resolve() else []
    return shlex.join(words)


def go_on(file: Path, overrides: list[str] | None, cluster_file: Path | str | None, root: Path, *more: str) -> str:
    """Return the command that continues what a file describes: `ablate` for an ablation, `run` for a recipe."""
    return command_line("ablate" if ablation.is_ablation(file) else "run", file, overrides, cluster_file, root, *more)


def refuse_damaged(file: Path, overrides: list[str] | None, cluster_file: Path | None, root: Path, stages: Iterable[Stage]) -> None:
    """Raise one `UserError` that names the results of a run that are not what was written, and the command that mends them."""
    damages = damage.of_run(root, stages)
    if damages:
        raise damage.told(damages, go_on(file, overrides, cluster_file, root))


def plan_of(file: Path, overrides: list[str] | None, root: Path, *, read_files: bool = True) -> Plan:
    """Read a recipe, or an ablation of one, and list its stages; `read_files` is that of `pipeline.build_plan`.

    Raises `UserError` with the file's name.
    """
    if ablation.is_ablation(file):
        return ablation.build_plan(file, root, tuple(overrides or ()), read_files=read_files).as_plan()
    loaded = recipe.load(file, tuple(overrides or ()))
    try:
        return pipeline.build_plan(loaded, root, file.resolve().parent, read_files=read_files)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def whole(plan: Plan) -> Plan:
    """Return all of a plan."""
    return plan


def go_offline(
    file: Path, overrides: list[str] | None, cluster: cluster.Cluster, root: Path, fresh: bool = False, part: Callable[[Plan], Plan] = whole
) -> None:
    """Refuse to start unless all that is still to do has its files; then let the libraries use nothing but `fetched`.

    Does nothing where the cluster is not offline. `fresh` reads every file again; `part` says which stages are to run. Raises
    one `UserError` that names all that is missing or altered, the recipe's own files among it.
    """
    if not cluster.offline:
        return
    stages = part(plan_of(file, overrides, root, read_files=False)).stages
    own = {source.path for stage in stages for source in stage.inputs.values() if isinstance(source, Asset)}
    missing = sorted(str(path) for path in own if not path.exists())
    if not missing:
        stages = store.unfinished(root, part(plan_of(file, overrides, root)).stages)
    words = [word for override in overrides or () for word in ("--set", override)]
    command = shlex.join(["rounds", "fetch", shipped.name_of(file), *words, "--to", str(cluster.fetched or "FOLDER")])
    folder.check(needs.of(stages), cluster.fetched, root, command, missing_paths=missing, fresh=fresh, watch=console.print)
    os.environ.update(folder.environment(cluster.fetched, root))
