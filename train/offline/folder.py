"""Running without the hub: the folder that `rounds fetch` fills, the list of what is in it, and the check of both.

The folder is a Hugging Face home (`HF_HOME`): `hub/` is huggingface_hub's cache, `datasets/` that of datasets. So with
the variables of `environment` every library finds its files there by itself. `fetched.json` lists them:

    {"assets": [{"kind": "dataset", "name": "org/set", "revision": "...", "patterns": [], "stages": ["mini: source.a"],
                 "files": {"hub/datasets--org--set/snapshots/.../a.parquet": {"size": 1234, "sha256": "..."}}}]}
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.train.engine import digests, store
from rounds.train.offline.needs import Need

LIST = "fetched.json"
_SHOWN = 5


def environment(folder: Path | None, root: Path | None = None, offline: bool = True) -> dict[str, str]:
    """Return the variables under which the libraries use the folder, and with `offline` nothing else.

    They are read when the libraries are imported: set them before, or in the environment of a new process. With a store
    `root` the folder may be read-only, as one that many share is.
    """
    found = {}
    if folder is not None:
        home = folder.resolve()
        datasets = _linked(home / "datasets", root) if root else home / "datasets"
        # A cache that the user's own variables name would be looked in before that of HF_HOME.
        found = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_DATASETS_CACHE": str(datasets)}
    if offline:
        found |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1")
        found |= {"TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": os.environ.get("WANDB_MODE", "offline")}
    return found


def _linked(datasets: Path, root: Path) -> Path:
    """Return a folder of the store with links to the prepared datasets: `datasets` writes its locks beside them."""
    name = hashlib.sha256(str(datasets).encode()).hexdigest()[:8]
    links = root.resolve() / f".datasets-{name}"
    links.mkdir(parents=True, exist_ok=True)
    for prepared in datasets.iterdir() if datasets.is_dir() else ():
        if prepared.is_dir():
            with contextlib.suppress(FileExistsError):
                (links / prepared.name).symlink_to(prepared)
    return links


def assets(folder: Path) -> list[dict[str, Any]]:
    """Return what the folder's list names; nothing where there is no list."""
    listed = store.read_fields(folder / LIST).get("assets")
    return [asset for asset in listed if _is_asset(asset)] if isinstance(listed, list) else []


def _is_asset(asset: Any) -> bool:
    """Tell whether an entry of the list is one: a damaged one is fetched again."""
    if not isinstance(asset, dict) or {"kind", "name", "revision"} - asset.keys():
        return False
    files, patterns = asset.get("files"), asset.get("patterns")
    if not isinstance(files, dict) or not isinstance(patterns, list) or not all(isinstance(each, str) for each in patterns):
        return False
    entries = files.values()
    return all(isinstance(each, dict) and isinstance(each.get("size"), int) and isinstance(each.get("sha256"), str) for each in entries)


def find(listed: Sequence[dict[str, Any]], need: Need) -> dict[str, Any] | None:
    """Return the asset that was fetched for a need, or for one that includes it."""
    for asset in listed:
        if (asset["kind"], asset["name"], asset["revision"]) == (need.kind, need.name, need.revision):
            given = set(asset["patterns"])
            return asset if not given or (need.patterns and given >= set(need.patterns)) else None
    return None


def check(
    needs: Sequence[Need],
    folder: Path | None,
    root: Path,
    command: str,
    *,
    missing_paths: Sequence[str] = (),
    fresh: bool = False,
    watch: Callable[[str], None] = lambda line: None,
) -> None:
    """Raise one `UserError` that names everything that is missing or not as it was fetched.

    Digests are remembered in the store `root` by size and modification time; `fresh` reads every file again. `command`
    is what would fetch the rest; `missing_paths` are the recipe's own files that are not there.
    """
    problems = [f"{path}: no such file or folder" for path in missing_paths]
    to_fetch = False
    listed = assets(folder) if folder else []
    for need in needs:
        asset = find(listed, need)
        wrong = _altered(asset, folder, root, fresh, watch) if asset and folder else ["not fetched"]
        if wrong:
            to_fetch = True
            at = f" at {need.revision}" if need.revision else ""
            problems.append(f"{need.kind} {need.name}{at} (for {', '.join(need.stages[:3])}): {'; '.join(wrong)}")
    if problems:
        mend = f"\nOn a machine with internet: {command}" if to_fetch else ""
        where = f" in {folder}" if folder else ""
        raise UserError(f"offline, and not everything is there{where}:\n  " + "\n  ".join(problems) + mend)


def _altered(asset: dict[str, Any], folder: Path, root: Path, fresh: bool, watch: Callable[[str], None]) -> list[str]:
    """Say which files of an asset are gone or differ from the list."""
    wrong, whole = [], {}
    for name, entry in asset["files"].items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is gone")
        elif path.stat().st_size != entry["size"]:
            wrong.append(f"{name} has {path.stat().st_size} bytes, {entry['size']} were fetched")
        else:
            whole[path] = (name, entry["sha256"])
    found = digests.digests(root, list(whole), fresh, lambda line: watch(f"{asset['name']}: {line}"))
    wrong += [
        f"{name} has another content than was fetched"
        for (name, wanted), digest in zip(whole.values(), found, strict=True)
        if digest != wanted
    ]
    more = len(wrong) - _SHOWN
    return wrong[:_SHOWN] + ([f"and {more} more files"] if more > 0 else [])
