"""The recipes, cluster files and ablations that come with Rounds, and how one is found by its name from any folder.

In: what a person wrote: a path, or a name such as `quickstart`, `stages`, `slurm-8xh100` or `recipes/quickstart.yaml`. Out: a file. What
lies in the person's own folder goes first.
"""

import difflib
from pathlib import Path
from typing import Literal

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config import own_file

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""In a checkout `recipes/` at its top, in an installed package `rounds/recipes`."""
Kind = Literal["recipe", "ablation", "cluster file"]
_FOLDERS: dict[Kind, tuple[str, ...]] = {
    "recipe": ("", "ablations"),  # every command that reads a recipe reads an ablation too
    "ablation": ("ablations", ""),
    "cluster file": ("clusters", ""),
}


def find(name: Path, kind: Kind) -> Path:
    """Return the person's own file as it is written, else the shipped one. Raises `UserError` with the nearest names."""
    if name.is_file():
        return name
    found = shipped(name, kind)
    if found is None and name.exists():
        own_file.check(name)
    if found is None:
        raise UserError(f"{name}: no such file, and Rounds ships no {kind} of that name. {_nearest(name, kind)}")
    return found


def shipped(name: Path, kind: Kind = "recipe") -> Path | None:
    """Return the shipped file of a name, with or without `recipes/` before it and `.yaml` after it."""
    inside = Path(*name.parts[1:]) if name.parts[:1] == (RECIPES.name,) else name
    if inside.is_absolute() or ".." in inside.parts or not inside.name:
        return None
    spelled = [inside, inside.with_name(f"{inside.name}.yaml")]
    places = [RECIPES / folder / each for folder in _FOLDERS[kind] for each in spelled]
    return next((place for place in places if place.is_file()), None)


def names(kind: Kind) -> list[str]:
    """List the names of the shipped files of a kind."""
    folders = _FOLDERS[kind] if kind == "recipe" else _FOLDERS[kind][:1]
    return sorted({path.stem for folder in folders for path in (RECIPES / folder).glob("*.yaml")})


def name_of(path: Path | str) -> str:
    """Return how a file is to be written in a command: by its name where that leads to it from here, else as it is."""
    path = Path(path)
    if not path.is_relative_to(RECIPES):
        return str(path)
    inside = path.relative_to(RECIPES).with_suffix("")
    return str(path) if inside.is_file() else inside.as_posix()


def _nearest(name: Path, kind: Kind) -> str:
    beside = [path.name for path in name.parent.glob("*.yaml")] if name.parent.is_dir() else []
    own = difflib.get_close_matches(name.name, beside, n=1) or [each for each in beside if each == f"{name.name}.yaml"]
    if own:
        return f"Did you mean {name.parent / own[0]}?"
    hint = nearest(name.name.removesuffix(".yaml"), names(kind))
    return hint[:1].upper() + hint[1:]
