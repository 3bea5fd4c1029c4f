"""YAML to a checked section: overrides applied, and every mistake told with file, line, field and the nearest name."""

import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import Section
from rounds.train.config import shipped, yaml_layers
from rounds.train.config.yaml_layers import position

S = TypeVar("S", bound=Section)
_SHARED_FIELDS = ("chat_template", "deepspeed", "rubric", "system_prompt")
"""Files that may be the project's own, under recipes/, where there is none of that name beside the recipe."""
_PATH_FIELDS = ("path", "fetched", "base", *_SHARED_FIELDS)
"""Fields that hold a local path where they hold text; a recipe's own `base` is a section."""

_SUITES = "evaluate.suites="
_MOST_TOLD, _MOST_SHOWN = 30, 300
"""Mistakes of one file, and characters of one value, that a message tells."""


def load(
    path: Path, section: type[S], overrides: Iterable[str] = (), beneath: Callable[[dict[str, Any], Path], dict[str, Any]] | None = None
) -> S:
    """Read `path`, laid over the files that it `extends`, as `section`. See `rounds.train.config.recipe.load` for how paths and overrides
    are treated. `beneath` lays more under the fields, before any override but those of the suites themselves."""
    layers = yaml_layers.read(path, absolute)
    data = yaml_layers.merged(layers)
    overrides = tuple(overrides)
    if beneath is not None:
        for override in overrides:
            if override.startswith(_SUITES):
                _override(data, override)
        try:
            data = beneath(data, path.resolve().parent)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return _checked(data, section, overrides, lambda loc: yaml_layers.locate(layers, data, loc))


def check(data: dict[str, Any], section: type[S], overrides: Iterable[str], where: str) -> S:
    """Apply overrides to fields that come from no one file, and check them; `where` heads each mistake."""
    return _checked(data, section, tuple(overrides), lambda _: where)


def _checked(data: dict[str, Any], section: type[S], overrides: tuple[str, ...], locate: "Locate") -> S:
    for override in overrides:
        _override(data, override)
    try:
        return section.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # An element that is wrong also makes its list "too short": only the deeper mistake is the person's.
        deeper = [e for e in found if e["type"] != "too_short" or not any(_inside(o["loc"], e["loc"]) for o in found)]
        raise UserError(_told(deeper, section, locate, data, overrides)) from None


def fields(path: Path) -> dict[str, Any]:
    """Return what a file holds, unchecked: enough to tell one kind of file from another."""
    return yaml_layers.merged(yaml_layers.read(path, absolute))


def explain(error: ValidationError, section: type[Section], where: str) -> str:
    """Tell the mistakes in a section that stands by itself, such as the settings of one filter."""
    return _told(error.errors(include_url=False), section, lambda _: where, None, ())


def extended(path: Path) -> list[Path]:
    """List the files that `path` extends, directly or through others, top to bottom."""
    return [layer.path for layer in yaml_layers.read(path, absolute)[1:]]


Locate = Callable[[tuple], str]
"""From the location of a field to "FILE:LINE"."""


def _told(found: Iterable[Any], section: type[Section], locate: Locate, data: Any, overrides: tuple[str, ...]) -> str:
    """Give each mistake one line, and none twice; of very many the first."""
    found = list(found)
    lines = list(dict.fromkeys(_explain(entry, section, locate, data, overrides) for entry in found[:_MOST_TOLD]))
    return "\n".join([*lines, f"and {len(found) - _MOST_TOLD} mistakes more"] if len(found) > _MOST_TOLD else lines)


def _short(value: Any) -> str:
    """Write a value that a person gave as Python does, of a long one the beginning."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text):,} characters)"


def find(name: str, beside: Path) -> Path | None:
    """Find a file that recipes share, such as `eval_tasks/free_answer.yaml`: beside the recipe, above it, or ours."""
    for folder in (beside, beside.parent, shipped.RECIPES):
        try:
            if (folder / name).is_file():
                return (folder / name).resolve()
        except (OSError, ValueError):  # a name that no file can have
            return None
    return None


def _inside(loc: tuple, outer: tuple) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def absolute(data: Any, folder: Path) -> Any:
    """Make the local paths in some data absolute: they are given relative to `folder`."""
    if isinstance(data, dict):
        return {k: _resolve(k, v, folder) if k in _PATH_FIELDS and isinstance(v, str) else absolute(v, folder) for k, v in data.items()}
    return [absolute(value, folder) for value in data] if isinstance(data, list) else data


def _resolve(field: str, value: str, folder: Path) -> str:
    if field in _SHARED_FIELDS and (shared := find(value, folder)):
        return str(shared)
    try:
        path = (folder / Path(value).expanduser()).resolve()
        if field == "base" and not path.is_file():  # what an ablation varies
            path = shipped.shipped(Path(value)) or path
        return str(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{field}: {value!r} is no path: {error}") from None


def _override(data: dict, text: str) -> None:
    """Set one field: `a.b.c=value`. A list is entered by position, or by the `name` of its element."""
    dotted, equals, raw = text.partition("=")
    where = f"--set {_cut(text)}"
    if not equals:
        raise UserError(f"{where}: expected path.to.field=value")
    try:
        value, _ = yaml_layers.parse(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {_short(raw)} is not valid YAML: {yaml_layers.told(error)}") from None
    *parents, last = dotted.split(".")
    try:
        value = absolute({last: value}, Path.cwd())[last]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    node: Any = data
    for depth, part in enumerate(parents):
        node = _enter(node, part, f"{where}: {'.'.join(parents[: depth + 1])}")
    if isinstance(node, list):
        node[position(node, last, where)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"{where}: {'.'.join(parents)} is {_short(node)}, which has no fields")


def _enter(node: Any, part: str, where: str) -> Any:
    if isinstance(node, list):
        return node[position(node, part, where)]
    if not isinstance(node, dict):
        raise UserError(f"{where}: the field above it is {_short(node)}, which has no fields")
    if not isinstance(node.get(part), dict | list):
        node[part] = {}  # a section that the file leaves at its default
    return node[part]


def _explain(error: Any, section: type[BaseModel], locate: Locate, data: Any, overrides: tuple[str, ...]) -> str:
    loc = (*error["loc"], *getattr(error.get("ctx", {}).get("error"), "loc", ()))
    field = ".".join(str(part) for part in loc) or "the whole"
    set_here = [override for override in overrides if _sets(override, loc, data)]
    where = f"--set {_cut(set_here[-1])}: {field}" if set_here else f"{locate(loc)}: {field}"
    kind, found = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{where}: unknown field. {nearest(str(loc[-1]), _fields_at(section, loc[:-1]))}"
    if kind == "missing":
        made = next((override for override in overrides if _makes(override, loc[:-1], data, overrides)), None)
        if made is not None:
            *above, name = loc[:-1]
            others = set(_at(data, tuple(above))) - {name}
            return (
                f"--set {_cut(made)}: {'.'.join(map(str, above))} has no {name!r}, and a new one needs {loc[-1]!r}. {nearest(name, others)}"
            )
        return f"{where}: required field is missing"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = error["ctx"].get("expected") or error["ctx"].get("expected_tags")
        wanted = [word.strip(" '") for word in expected.replace(" or ", ", ").split(",")]
        return f"{where}: found {_short(error['ctx'].get('tag', found))}; {nearest(str(error['ctx'].get('tag', found)), wanted)}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}: {message}"
    return f"{where}: {message.replace('valid tuple', 'list')}; found {_short(found)} ({type(found).__name__})"


def _sets(override: str, loc: tuple, data: Any) -> bool:
    """Tell whether an override gave the field that a mistake is in; lists are entered by position or by name."""
    node, dotted = data, override.partition("=")[0].split(".")
    for part, given in zip(loc, dotted, strict=False):
        names, item = {str(part)}, None
        if isinstance(node, list) and isinstance(part, int) and part < len(node):
            item = node[part]
            names |= {str(item.get("name"))} if isinstance(item, dict) else set()
        elif isinstance(node, dict):
            item = node.get(part)
        if given not in names:
            return False
        node = item
    return len(loc) >= len(dotted)


def _makes(override: str, loc: tuple, data: Any, overrides: tuple[str, ...]) -> bool:
    """Tell whether a section is there only because this override, and others, gave fields of it."""
    inside = tuple(override.partition("=")[0].split("."))
    section = _at(data, loc)
    if len(loc) < 2 or inside[: len(loc)] != loc or len(inside) == len(loc) or not isinstance(section, dict):
        return False
    given = {tuple(each.partition("=")[0].split("."))[: len(loc) + 1] for each in overrides}
    return all((*loc, field) in given for field in section)


def _at(data: Any, loc: tuple) -> Any:
    for part in loc:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _fields_at(model: Any, loc: tuple) -> list[str]:
    """List the field names of the section that a location in the error points into."""
    for part in loc:
        candidates = _sections(model)
        if isinstance(part, str):
            fields = [c.model_fields[part].annotation for c in candidates if part in c.model_fields]
            tagged = [c for c in candidates if part in typing.get_args(getattr(c.model_fields.get("kind"), "annotation", None))]
            model = next(iter(fields or tagged), model)
    return [name for candidate in _sections(model) for name in candidate.model_fields]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Find the sections inside a type such as `tuple[Annotated[Round, ...], ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in typing.get_args(annotation) for section in _sections(argument)]
