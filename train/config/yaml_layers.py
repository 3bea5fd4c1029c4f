"""A YAML file and the files that it extends, read and laid over each other.

`extends: med42-v2-8b.yaml` (or a list, later over earlier; paths are relative to the file that states them, or name a recipe that
is shipped) puts a file on top of another. Maps merge, lists and scalars replace, and a map with another `kind` replaces too, since its
fields belong to another section. A map over a list of named elements enters it by name or position, as `--set` does, and adds
an element of the name after a `+`, so

    extends: med42-v2-8b.yaml
    rounds: {second: {beta: 0.05}}
    sft: {data: {+notes: {max_rows: 9000}}}

changes one field of one round, and adds a source to the mix.
"""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config import shipped

FIELD = "extends"


@dataclass(frozen=True)
class Layer:
    """One file: its fields, and its YAML nodes, which know their lines."""

    path: Path
    data: dict[str, Any]
    root: yaml.Node | None


def read(path: Path, prepare: Callable[[Any, Path], Any], inside: tuple[Path, ...] = ()) -> list[Layer]:
    """Read `path` and what it extends, the file itself first, then the files under it from top to bottom.

    `prepare(data, folder)` is applied to each file's fields, with the folder of that file.

    Raises `UserError` for a file that is missing, that is no YAML mapping, or that extends itself.
    """
    data, root = _parse(path)
    named = data.pop(FIELD, [])
    where = f"{path}{line_of(root, FIELD)}: {FIELD}"
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"{where}: expected the path of a file, or a list of paths; found {named!r}")
    inside = (*inside, path.resolve())
    under: list[Layer] = []
    for name in named:
        try:
            target = path.parent / Path(name).expanduser()
            if not target.is_file():
                target = shipped.shipped(Path(name)) or target
            whole, is_there = target.resolve(), target.is_file()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{where}: {name!r} is no path: {error}") from None
        if whole in inside:
            ring = " -> ".join(each.name for each in (*inside, whole))
            raise UserError(f"{where}: {ring}: a file may not extend itself")
        if not is_there:
            raise UserError(f"{where}: {_missing(target)}")
        under = [*read(target, prepare, inside), *under]
    try:
        return [Layer(path, prepare(data, path.resolve().parent), root), *under]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def merged(layers: list[Layer]) -> dict[str, Any]:
    """Lay the files over each other, the first on top. Raises `UserError` for an element that a list does not have."""
    *upper, lowest = layers
    data: dict[str, Any] = lowest.data
    for layer in reversed(upper):
        data = _over(data, layer.data, layer, ())
    return data


def _over(under: Any, over: Any, layer: Layer, loc: tuple[str, ...]) -> Any:
    if isinstance(under, list) and isinstance(over, dict):
        items = list(under)
        for name, value in over.items():
            where = f"{layer.path}{line_of(layer.root, *loc, str(name))}: {'.'.join((*loc, str(name)))}"
            if str(name).startswith("+"):
                items.append(_added(str(name).removeprefix("+"), value, items, where))
                continue
            place = position(under, str(name), where)
            if isinstance(items[place], str) and isinstance(value, dict):
                items[place] = {"name": items[place]}  # a plain name stands for a section with nothing but a name
            items[place] = _over(items[place], value, layer, (*loc, str(name)))
        return items
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    if under.get("kind", over.get("kind")) != over.get("kind", under.get("kind")):
        return over
    both = {name: _over(under[name], over[name], layer, (*loc, str(name))) for name in over if name in under}
    return {**under, **over, **both}


def _added(name: str, value: Any, items: list, where: str) -> Any:
    """Return a new element of a list. Raises `UserError` where the list has one of that name."""
    if name in [item.get("name") if isinstance(item, dict) else item for item in items]:
        raise UserError(f"{where}: there is a {name!r} already; without the `+` it is changed")
    if not isinstance(value, dict | None):
        raise UserError(f"{where}: expected the fields of the new element, found {value!r}")
    return {"name": name, **(value or {})}


def position(items: list, part: str, where: str) -> int:
    """Return the place of a list's element by its `name` or its number. Raises `UserError` beginning with `where`."""
    names = [item.get("name") if isinstance(item, dict) else item for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise UserError(f"{where}: no element {part!r}; {nearest(part, [str(n) for n in names if n])} or 0..{len(items) - 1}")


def locate(layers: list[Layer], data: Any, loc: tuple) -> str:
    """Return "FILE:LINE" of the deepest part of a location in `data`, the merged fields, that one of the files gives."""
    best_depth, best = 0, str(layers[0].path)
    for layer in layers:
        depth, line, replaces = _walk(layer.root, data, loc)
        if depth > best_depth:
            best_depth, best = depth, f"{layer.path}:{line}"
        if replaces:
            break
    return best


def _walk(node: yaml.Node | None, data: Any, loc: tuple) -> tuple[int, int, bool]:
    """Follow a location in one file: how many parts it has, the line of the last, and whether it hides files below."""
    depth, line, replaces = 0, 0, False
    for part in loc:
        item = _step(data, part)
        names = {str(part)} | ({str(item.get("name"))} if isinstance(data, list) and isinstance(item, dict) else set())
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value.removeprefix("+") in names]
            if not found:
                # A union's tag, which is no field, or one that this file leaves to others.
                data = data if item is None else item
                continue
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1  # type: ignore[union-attr]
        else:
            break
        depth, data = depth + 1, item
        replaces = replaces or not isinstance(node, yaml.MappingNode)
    return depth, line, replaces


def _step(data: Any, part: Any) -> Any:
    if isinstance(data, dict):
        return data.get(part)
    return data[part] if isinstance(data, list) and isinstance(part, int) and part < len(data) else None


def line_of(root: yaml.Node | None, *loc: str) -> str:
    """Return ":LINE" of a field of one file, or nothing where the file does not have it."""
    depth, line, _ = _walk(root, None, loc)
    return f":{line}" if depth else ""


# libyaml's is twenty times as fast; PyYAML is also built without it.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """YAML's safe loader, but a field that is given twice is a mistake, not silently the last one."""

    def construct_mapping(self, node, deep=False):
        written = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        seen = [key.value for key in written]
        twice = next((key for place, key in enumerate(written) if key.value in seen[:place]), None)
        if twice is not None and not node.__dict__.get("merged"):
            raise yaml.constructor.ConstructorError(None, None, f"field {twice.value!r} is given twice", twice.start_mark)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node):
        super().flatten_mapping(node)
        node.__dict__["merged"] = True  # a field of its own beside one that an anchor brings in is no mistake


def _parse(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    if not path.is_file():
        raise UserError(_missing(path))
    try:
        text = path.read_text(encoding="utf-8")
        data, root = _Loader(text).get_single_data(), yaml.compose(text, Loader=_Safe)
        json.dumps(data, default=str)  # an alias inside its own anchor has no end
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {type(data).__name__}")
    return data, root


def _missing(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
    return f"{path}: no such file" + (f"; did you mean {path.parent / near[0]}?" if near else "")
