"""The stages of a recipe as last run, by name: for finding them again, and for telling what changed."""

import time
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.train.engine.graph import Stage
from rounds.train.engine.records import SPEC
from rounds.train.engine.store import read_json, write_json


def remember_run(root: Path, name: str, recipe: str, stages: list[Stage]) -> None:
    """Note which stages a recipe consists of, so that they can be found by name and a change can be explained."""
    entries = {
        stage.name: {"folder": stage.folder_name, "params": stage.params.stored(), "version": stage.version,
                     "inputs": {key: source.key for key, source in stage.inputs.items()}}
        for stage in stages
    }  # fmt: skip
    (root / "runs").mkdir(parents=True, exist_ok=True)
    write_json(root / "runs" / f"{name}.json", {"recipe": recipe, "time": time.time(), "stages": entries})


def last_run(root: Path, name: str) -> dict[str, dict]:
    """Return the stages of a recipe as last run, by name; empty when it never was."""
    plain = read_json(root / "runs" / f"{name}.json")
    stages = plain.get("stages") if isinstance(plain, dict) else None
    entries = stages if isinstance(stages, dict) else {}
    return {stage: entry for stage, entry in entries.items() if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    """Tell whether a line of a run is one: the file may be damaged, and is only a memory."""
    fields = {"folder": str, "params": dict, "version": int, "inputs": dict}
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), kind) for name, kind in fields.items())
        and (Path(entry["folder"]).name == entry["folder"])
    )


def find(root: Path, wanted: str) -> Path:
    """Find a stage's folder by path, by folder name or key (or the start of one), or by stage name in any run here.

    Raises `UserError` when nothing or more than one folder fits.
    """
    if not wanted:
        raise UserError("give a stage's name, key, or folder")
    if (Path(wanted) / SPEC).is_file():
        return Path(wanted)
    named = [last_run(root, run.stem).get(wanted) for run in sorted((root / "runs").glob("*.json"))]
    fits = {root / entry["folder"] for entry in named if entry}
    if not fits:
        folders = sorted(path.parent for path in root.glob("*/stage.json"))
        fits = {f for f in folders if f.name.startswith(wanted) or f.name.rpartition("-")[2].startswith(wanted)}
    there = sorted(folder for folder in fits if (folder / SPEC).is_file())
    if len(there) == 1:
        return there[0]
    if fits and not there:
        raise UserError(f"{wanted} is planned, as {sorted(f.name for f in fits)[0]}, and has not been started yet")
    if not there:
        raise UserError(f"no stage {wanted!r} in {root}: give a stage's name, folder or key; `rounds status RECIPE` lists them")
    raise UserError(f"{wanted!r} fits {len(there)} stages: {', '.join(f.name for f in there)}; give one of these")
