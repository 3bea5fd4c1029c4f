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

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config import own_file, shipped

FIELD = "extends"


@dataclass(frozen=True)
class Layer:
    """One file: its fields, and its YAML nodes, which know their lines."""

    path: Path
    data: dict[str, Any]
    root: yaml.Node | None


_MOST_FILES = 100
"""Where each of many files extends two others, and these the same two, their number doubles with every one."""
_MOST_VALUES, _DEEPEST = 20_000, 100
"""Of one file, as if each alias were written out: far more than a recipe needs, and read in a second."""
_TOO_MUCH = f"more than {_MOST_VALUES:,} values, or more than {_DEEPEST} inside each other"
_UNREADABLE = (ValueError, OverflowError, AttributeError, KeyError, IndexError, TypeError)
"""What PyYAML raises for a scalar that is not what its tag or its form says."""


def read(
    path: Path, prepare: Callable[[Any, Path], Any], inside: tuple[Path, ...] = (), read_so_far: list[Path] | None = None
) -> list[Layer]:
    """Read `path` and what it extends, the file itself first, then the files under it from top to bottom.

    `prepare(data, folder)` is applied to each file's fields, with the folder of that file.

    Raises `UserError` for a file that is missing, that is no YAML mapping, or that extends itself, or more files than anybody can follow.
    """
    read_so_far = [] if read_so_far is None else read_so_far
    read_so_far.append(path)
    if len(read_so_far) > _MOST_FILES:
        raise UserError(
            f"{(*inside, path)[0]}: extends more than {_MOST_FILES} files, directly or through others: each counts as often as it is named"
        )
    data, root = _parse(path)
    named = data.pop(FIELD, [])
    where = f"{path}{line_of(root, FIELD)}: {FIELD}"
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"{where}: expected the path of a file, or a list of paths; found {named!r:.200}")
    inside = (*inside, path.resolve())
    under: list[Layer] = []
    for name in named:
        try:
            target = path.parent / Path(name).expanduser()
            if not target.is_file():
                target = shipped.shipped(Path(name)) or target
            whole = target.resolve()
            own_file.check(target)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{where}: {name!r} is no path: {error}") from None
        if whole in inside:
            ring = " -> ".join(each.name for each in (*inside, whole))
            raise UserError(f"{where}: {ring}: a file may not extend itself")
        under = [*read(target, prepare, inside, read_so_far), *under]
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


def line_of_node(root: yaml.Node | None, loc: tuple) -> str:
    """Return ":LINE" of the deepest part of a location that a file without layers under it has, by its fields' names and numbers."""
    node, line = root, None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            key, node = next(((key, value) for key, value in node.value if key.value == str(part)), (None, None))
            line = key.start_mark.line + 1 if key is not None else line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return f":{line}" if line is not None else ""


# libyaml's is twenty times as fast; PyYAML is also built without it.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """YAML's safe loader, but a field that is given twice is a mistake, not silently the last one, and so is one whose name is no text."""

    def construct_mapping(self, node, deep=False):
        written = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"]
        seen: set[str] = set()
        for key in written if not node.__dict__.get("merged") else ():
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"field {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        made = super().construct_mapping(node, deep)
        wrong = next((name for name in made if not isinstance(name, str | int) or isinstance(name, bool)), None)
        if wrong is not None or None in made:
            says = f"a field's name is read as {wrong!r} ({type(wrong).__name__}): put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, says, node.start_mark)
        return made

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except _UNREADABLE as error:
            if not isinstance(node, yaml.ScalarNode):
                raise
            kind = node.tag.rpartition(":")[2]
            says = f"{node.value[:80]!r} cannot be read as {kind} ({type(error).__name__}): put it in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, says, node.start_mark) from None

    def flatten_mapping(self, node):
        super().flatten_mapping(node)
        node.__dict__["merged"] = True  # a field of its own beside one that an anchor brings in is no mistake


def parse(text: str) -> tuple[Any, yaml.Node | None]:
    """Read YAML with the safe loader: its value, and its nodes.

    Raises `ValueError` or a `YAMLError` for what is none, for a field that is given twice or whose name is no text, and for what aliases
    blow up, nest without end, or put into itself.
    """
    _count(text)
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, None
        _measure(root, {}, set())
        return loader.construct_document(root), yaml.compose(text, Loader=_Safe)
    finally:
        loader.dispose()


def _count(text: str) -> None:
    """Refuse what is too much, before nodes are made of it: those are made by recursion, in C, which would end the process."""
    values = depth = 0
    for event in yaml.parse(text, Loader=_Safe):
        values += isinstance(event, yaml.ScalarEvent | yaml.AliasEvent | yaml.CollectionStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if values > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError(f"line {event.start_mark.line + 1}: {_TOO_MUCH}")


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]], inside: set[int]) -> tuple[int, int]:
    """Return how many values a node holds with all aliases written out, and how deep they nest. Each node is visited once."""
    if id(node) in inside:
        raise ValueError(f"line {node.start_mark.line + 1}: an alias stands inside its own anchor, which has no end")
    if id(node) not in known:
        inside.add(id(node))
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
        below = list(node.value) if isinstance(node, yaml.SequenceNode) else below
        sizes = [_measure(part, known, inside) for part in below]
        size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if size > _MOST_VALUES or depth > _DEEPEST or len(inside) > _DEEPEST:
            raise ValueError(f"line {node.start_mark.line + 1}: {_TOO_MUCH}, counting each alias in full")
        inside.remove(id(node))
        known[id(node)] = (size, depth)
    return known[id(node)]


def told(error: Exception) -> str:
    """Say in one line what is wrong with some YAML, the line first where it is known."""
    mark = getattr(error, "problem_mark", None)
    parts = (getattr(error, "context", None), getattr(error, "problem", None)) if mark else (str(error),)
    says = " ".join(", ".join(filter(None, parts)).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {says}" if mark else says


def _parse(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    try:
        data, root = parse(own_file.text(path, "YAML"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid YAML: {told(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {'nothing' if data is None else type(data).__name__}")
    return data, root
