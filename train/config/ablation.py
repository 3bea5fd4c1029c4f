"""The schema of an ablation file: a base recipe, and named variants of it as edits to the recipe's plain data.

In: `recipes/ablations/*.yaml`. Out: for every variant the data of a whole recipe, which nothing has checked yet. Paths into
a recipe are dotted, as after `--set`; an element of a list goes by its name or its position, and `*` stands for all:
`sft.lora`, `rounds.second.beta`, `rounds.*.beta`, `rounds.0.data.0`, `filters.decontaminate`.
"""

import copy
import itertools
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, model_validator

from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import Between, FieldError, Name, Section
from rounds.train.config import yaml_file
from rounds.train.config.yaml_layers import position

_GONE = object()
VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=+-]*$", max_length=60)]


class Variant(Section):
    """How one variant differs from the base recipe. The edits are made in the order of these fields."""

    about: str = ""
    """One line for the report: what the variant asks."""
    rounds: tuple[str | int, ...] | None = None
    """The rounds to keep, by name or position, in the order to run them; `[]` keeps none, None all as they are."""
    drop: tuple[str, ...] = ()
    """Paths to leave out: `sft`, `rounds.second`, `filters.decontaminate`, `rounds.0.data.1`. Positions are those before."""
    pool: Name | None = None
    """Put the data of all rounds that are left into one round of this name, with the settings of the first."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Path -> new value. A section that the recipe leaves at its default is made."""
    scale: dict[str, Annotated[float, Between(1e-6, 1e6, "the factor of a number that is given")]] = Field(default_factory=dict)
    """Path -> factor for a number that the recipe gives: a change that fits every base, such as ten times its rate."""


def _variant(value: Any) -> Any:
    """YAML reads a name with nothing after it as null: a variant that changes nothing."""
    return {} if value is None else value


def _cells(value: Any) -> Any:
    """Let a plain list of values stand where each value is its own label."""
    return {_label(each): each for each in value} if isinstance(value, list | tuple) else value


def _label(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


class Ablation(Section):
    """A base recipe and variants of it, each compared with one of them, the baseline."""

    name: Name
    """Names the report and the list of stages in the store."""
    description: str = ""
    """One line for the report."""
    base: str
    """The recipe that is varied; relative to the file that says so. A file that `extends` this one may vary another."""
    baseline: str
    """The variant that every other one is compared with."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] | None = None
    """Run every variant with each of these seeds; None takes the recipe's. Without several, the report cannot tell what a
    change does from what another seed does."""
    every: Variant = Variant()
    """Edits for all variants, made first. Without gates, say, a variant ends with the policy that its rounds made."""
    variants: dict[VariantName, Annotated[Variant, BeforeValidator(_variant)]] = Field(default_factory=dict)
    """Name -> edits; the report keeps their order. May be left out where there is a grid."""
    grid: dict[str, Annotated[dict[str, Any], BeforeValidator(_cells), Field(min_length=1)]] = Field(default_factory=dict)
    """Path -> values, or label -> value: one more variant for every combination, named such as `beta=0.1+loss=ipo`."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "Ablation":
        for path, values in self.grid.items():
            for label in values:
                if not label.isprintable():
                    raise FieldError(f"{label!r} holds a line break or a control character", "grid", path)
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise FieldError(f"a seed stands twice in {list(self.seeds)}; it would count as two runs", "seeds")
        for twice in self.cells().keys() & self.variants.keys():
            raise FieldError(f"{twice!r} is a variant and a combination of the grid", "variants", twice)
        if not self.all():
            raise FieldError("no variant is left: give some, or a grid", "variants")
        if self.baseline not in self.all():
            raise FieldError(f"no variant is called {self.baseline!r}. {nearest(self.baseline, self.all())}", "baseline")
        return self

    def cells(self) -> dict[str, Variant]:
        """List the combinations of the grid as variants."""
        if not self.grid:
            return {}
        short = _short(list(self.grid))
        found = {}
        for labels in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, labels, strict=True))
            name = "+".join(f"{short[path]}={label}" for path, label in chosen.items())
            found[name] = Variant(set={path: self.grid[path][label] for path, label in chosen.items()})
        return found

    def all(self) -> dict[str, Variant]:
        """List the variants, those of the grid last."""
        return {**self.variants, **self.cells()}


def _short(paths: list[str]) -> dict[str, str]:
    """Name a path by its last part, or by all of it where two would share a name."""
    last = [path.rpartition(".")[2] for path in paths]
    return {path: name if last.count(name) == 1 else path.replace("*.", "") for path, name in zip(paths, last, strict=True)}


def edited(recipe: dict[str, Any], variant: Variant, folder: Path) -> dict[str, Any]:
    """Return a copy of a recipe's data, defaults included, with a variant's edits made and nothing checked.

    Local paths in new values are relative to `folder`. Raises `UserError` naming the field of the variant for a path that
    leads nowhere.
    """
    data = copy.deepcopy(recipe)
    if variant.rounds is not None:
        places = [position(data["rounds"], str(each), "rounds") for each in variant.rounds]
        if len(set(places)) < len(places):
            raise UserError(f"rounds: a round stands twice in {list(variant.rounds)}; it can run once")
        data["rounds"] = [data["rounds"][place] for place in places]
    _drop(data, variant.drop)
    if variant.pool is not None:
        data["rounds"] = [_pooled(data["rounds"], variant.pool)]
    for path, value in variant.set.items():
        for node, last in _places(data, path, f"set.{path}", make=True):
            node[last] = copy.deepcopy(yaml_file.absolute({str(last): value}, folder)[str(last)])
    for path, factor in variant.scale.items():
        for node, last in _places(data, path, f"scale.{path}"):
            if isinstance(node[last], bool) or not isinstance(node[last], int | float):
                raise UserError(f"scale.{path}: expected a number to multiply, found {node[last]!r}")
            product = float(f"{node[last] * factor:.12g}")  # ten times 1e-6 is to be 1e-5, also in the stage's key
            node[last] = int(product) if isinstance(node[last], int) and product.is_integer() else product
    return data


def _drop(data: dict[str, Any], paths: tuple[str, ...]) -> None:
    """Leave out what the paths name: list elements go, fields take their default. Positions are those before any goes."""
    found = [place for path in paths for place in _places(data, path, f"drop.{path}")]
    for node, last in found:
        node[last] = _GONE
    for node, last in found:
        if isinstance(node, dict):
            node.pop(last, None)
        elif _GONE in node:
            node[:] = [each for each in node if each is not _GONE]


def _pooled(rounds: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Make one round of several: the first one's settings, everyone's data, in order and each share once."""
    if not rounds:
        raise UserError("pool: no round is left to pool")
    shares = [share for each in rounds for share in each["data"]]
    return {**rounds[0], "name": name, "data": [s for place, s in enumerate(shares) if s not in shares[:place]]}


def _places(data: Any, path: str, where: str, make: bool = False) -> list[tuple[Any, Any]]:
    """Find what a path leads to, as (mapping or list, key or position); `*` leads to several.

    With `make` the last field need not be there, and sections on the way that are None or not there are made.
    """
    *parents, last = path.split(".")
    nodes = [data]
    for part in parents:
        steps = [(node, key) for node in nodes for key in _keys(node, part, where, make)]
        for node, key in steps:
            if make and isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
        nodes = [node[key] for node, key in steps]
    return [(node, key) for node in nodes for key in _keys(node, last, where, make)]


def _keys(node: Any, part: str, where: str, make: bool) -> list[Any]:
    if isinstance(node, list):
        return list(range(len(node))) if part == "*" else [position(node, part, where)]
    if not isinstance(node, dict):
        raise UserError(f"{where}: the field above {part!r} is {node!r}, which has no fields")
    if part == "*":
        return list(node)
    if part not in node and not make:
        raise UserError(f"{where}: the recipe has no {part!r} there. {nearest(part, list(node))}")
    return [part]
