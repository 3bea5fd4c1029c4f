"""Stages with other keys and the same answer: behind a gate, a stage's key holds the gate's, and its answer only what the gate let through.

While planning nobody knows what a gate will decide, so its rules are in the key of all that follows. When a stage begins they have
been decided: it is then the same work as without the gate, or behind a gate of other rules, if the same policy went on. Its identity is
its key with every gate replaced by the policy that passed. What is finished under that identity is taken over, not computed again.

store/same/DPO-IDENTITY.json says which folder holds an identity that is not its own key.
"""

import json
import os
import shutil
from pathlib import Path

from rounds.train.engine import damage, policy, records, store
from rounds.train.engine.digests import Memory
from rounds.train.engine.graph import KEY_LENGTH, identity
from rounds.train.engine.kinds import Kind

_POLICIES = ("policy", "reference_policy", "current", "candidate", "against_policy", "judge")
"""Inputs that are read as policies; a gate is also read for its scores."""


def identity_of(folder: Path, known: dict[Path, str] | None = None) -> str:
    """Return a prepared stage's key with every gate, where it is read as a policy, replaced by what it let through."""
    known = {} if known is None else known
    if folder not in known:
        spec = store.spec(folder)
        keys = {
            name: entry.digest or "" if entry.stage is None else _input(name, folder.parent / entry.stage, known)
            for name, entry in spec.inputs.items()
        }
        known[folder] = identity(spec.function, spec.version, spec.params, keys)
    return known[folder]


def _input(name: str, folder: Path, known: dict[Path, str]) -> str:
    if name in _POLICIES and store.spec(folder).kind.decides:
        return identity_of(policy.chain(folder)[-1], known)
    return identity_of(folder, known)


def find(folder: Path) -> Path | None:
    """Return the finished folder of the same store that has a stage's answer under another key, or None."""
    spec = store.spec(folder)
    if not _costs(spec.kind) or not all(store.done(folder.parent / name) for name in spec.stages().values()):
        return None
    name = f"{spec.function}-{identity_of(folder)}"
    pointer = store.read_json(_pointer(folder.parent, name))
    places = [name, *([pointer] if isinstance(pointer, str) else [])]
    memory = Memory(folder.parent)
    return next(
        (path for place in places if (path := folder.parent / place) != folder and store.done(path) and not damage.full(path, memory)),
        None,
    )


def remember(folder: Path) -> None:
    """Note a finished stage under its identity, where that is not its own key."""
    spec = store.spec(folder)
    name = f"{spec.function}-{identity_of(folder)}"
    if _costs(spec.kind) and name != folder.name:
        path = _pointer(folder.parent, name)
        path.parent.mkdir(exist_ok=True)
        store.write_json(path, folder.name)


def take_over(twin: Path, folder: Path) -> None:
    """Make a twin's result a stage's own: linked where the disk can, and descending from this stage's own policy."""
    for file in store.result_files(twin):
        target = folder / file.relative_to(twin)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, target)
    if store.spec(folder).kind.trains:
        described = json.loads((folder / records.POLICY).read_text(encoding="utf-8"))
        start = store.inputs(folder)["policy"].name
        (folder / records.POLICY).unlink()  # else the twin's own would be written to
        store.write_json(folder / records.POLICY, {**described, "start": start})


def _costs(kind: Kind) -> bool:
    """Tell whether a kind's work is worth being taken over: it has a model at work, or a judge that may be paid for."""
    return kind.loads_policy or kind.ranks or kind.compares_answers


def _pointer(root: Path, name: str) -> Path:
    assert len(name.rpartition("-")[2]) == KEY_LENGTH
    return root / "same" / f"{name}.json"
