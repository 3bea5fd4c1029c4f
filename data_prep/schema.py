"""The parts of a recipe that speak of data: sources, filters and mixes. Defaults live here and nowhere else.

What every section of a recipe is, and how it is written into a stage's key and read back, stands here too: see `Later`.
"""

import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

_STORED = {"stored": True}


@dataclass(frozen=True)
class Later:
    """Marks a field that came after its section was first released: `Annotated[int | None, Later(None)] = None`.

    `as_before` is the value under which a stage answers as it did without the field. A field that has it is left out where a stage's
    params are stored, so old keys stay what they were; one that is missing there is read as having it. It never changes again, also
    when the default does: a default may change what a recipe means, and must not change what an old key means.
    """

    as_before: Any


@dataclass(frozen=True)
class Beside:
    """Marks a field that says how a stage is to work and cannot change its answer, such as a limit: `Annotated[int, Beside()] = 9`.

    It stands beside the params in `stage.json` and is in no key, so that raising it makes nothing anew.
    """


@dataclass(frozen=True)
class Between:
    """Bounds of a number, both of them allowed, and why they are there: whoever goes beyond is told."""

    low: float
    high: float
    why: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: float) -> float:
        if not self.low <= value <= self.high:
            sign = "should be greater than 0: " if value <= 0 < self.low else ""
            raise ValueError(f"{sign}expected {_number(self.low)} to {_number(self.high)}, found {_number(value)}: {self.why}")
        return value


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**15 else f"{value:g}"


class FieldError(ValueError):
    """A mistake that a validator of a whole section finds in one field below it, at `loc`."""

    def __init__(self, message: str, *loc: str | int) -> None:
        super().__init__(message)
        self.loc = loc


class Section(BaseModel):
    """A part of a recipe: frozen, and an unknown field is a mistake, not an extra."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def stored(self, exclude: set[str] | None = None) -> dict[str, Any]:
        """Return it as plain JSON for a stage's key and `stage.json`: all fields, but later ones that say as before, and those beside.

        Raises `TypeError` for a value that is not JSON: pydantic would make a text of a path, and a path must not be in a key.
        """
        as_before = self._later()
        kept = [name for name in type(self).model_fields if name not in {*(exclude or ()), *self._beside()}]
        plain = {name: _plain(getattr(self, name)) for name in kept if name not in as_before or getattr(self, name) != as_before[name]}
        return plain | {name: _plain(value) for name, value in (self.model_extra or {}).items()}

    def beside(self) -> dict[str, Any]:
        """Return the fields that are in no key, and those of the sections in it that have any."""
        own = {name: _plain(getattr(self, name)) for name in type(self).model_fields if name in self._beside()}
        inner = {name: getattr(self, name).beside() for name in type(self).model_fields if isinstance(getattr(self, name), Section)}
        return own | {name: fields for name, fields in inner.items() if fields and name not in own}

    @classmethod
    def read_stored(cls, plain: Any, beside: Mapping[str, Any] | None = None) -> Self:
        """Read what `stored` and `beside` wrote, in this release or one before it. Raises pydantic's `ValidationError`."""
        return cls.model_validate(_laid(plain, beside) if beside else plain, context=_STORED)

    @classmethod
    def _beside(cls) -> set[str]:
        return {name for name, field in cls.model_fields.items() if any(isinstance(mark, Beside) for mark in field.metadata)}

    @classmethod
    def _later(cls) -> dict[str, Any]:
        return {name: mark.as_before for name, field in cls.model_fields.items() for mark in field.metadata if isinstance(mark, Later)}

    @model_validator(mode="before")
    @classmethod
    def _fill_as_before(cls, plain: Any, info: ValidationInfo) -> Any:
        return {**cls._later(), **plain} if info.context == _STORED and isinstance(plain, Mapping) else plain

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, plain: Any) -> Any:
        """Refuse `yes` for a number, which would be taken as 1."""
        for name in _of_numbers(cls).intersection(plain if isinstance(plain, Mapping) else ()):
            value = plain[name]
            parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
            found = next((part for part in parts if isinstance(part, bool)), None)
            if found is not None:
                message = f"expected a number, found {str(found).lower()} (YAML reads yes, no, on and off as true and false)"
                raise FieldError(message, name)
        return plain


@functools.cache
def _of_numbers(section: type[Section]) -> frozenset[str]:
    """Name the fields whose values, or their parts, are numbers and nothing that a truth value could be."""
    kinds = {name: _kinds(field.annotation) for name, field in section.model_fields.items()}
    return frozenset(name for name, kind in kinds.items() if kind & {int, float} and not kind & {bool, Any})


def _kinds(annotation: Any) -> set[Any]:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return _kinds(inner[0])
    if typing.get_origin(annotation) is Literal:
        return {type(word) for word in inner}
    return set().union(*map(_kinds, inner)) if inner else {annotation}


def _laid(plain: Any, beside: Mapping[str, Any]) -> Any:
    if not isinstance(plain, Mapping):
        return plain
    inner = {name: _laid(plain[name], fields) if isinstance(plain.get(name), Mapping) else fields for name, fields in beside.items()}
    return {**plain, **inner}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.stored()
    if isinstance(value, dict):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"{wrong[0]!r} is no JSON key: expected a string")
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{value!r} is not JSON")


Count = Annotated[int, Between(1, 10**10, "it counts something, and no set here has more")]


def _named(value: Any) -> Any:
    """Let a recipe write a plain name where a section with nothing but a name would do."""
    return {"name": value} if isinstance(value, str) else value


class FilterUse(Section):
    """One filter and its settings. The settings are checked by the filter's own `Settings`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    """Name of a file in data_prep/filters."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings given beside the name."""
        return dict(self.model_extra or {})


def _phi(value: Any) -> Any:
    """YAML 1.1 reads `phi: off` as false. A word is the action of the filter, a mapping its settings."""
    if value is False or value == "off":
        return "off"
    settings = {"action": value} if isinstance(value, str) else value
    return {**settings, "name": "phi"} if isinstance(settings, Mapping) else value


class RowsUse(Section):
    """Which rows of which registered set: what a stage's key says of them."""

    source: str
    """Name of a file in data_prep/sources, such as `ultrafeedback`; `file` brings your own rows."""
    split: str = "train"
    """A split that the source offers. A benchmark's test split can be used for evaluation only."""
    revision: str | None = None
    """Commit of the hub dataset, when not the one pinned in the source's file."""
    format: (
        Literal[
            "messages",
            "sharegpt",
            "alpaca",
            "question_answer",
            "summary",
            "dialogue",
            "classification",
            "multiple_choice",
            "preference",
            "graded",
            "prompt",
        ]
        | None
    ) = None
    """`file` only: the shape of a row; see data_prep/sources/file.py for one example row of each."""
    columns: dict[str, str] = Field(default_factory=dict)
    """`file` only: our column name -> the column's name in your file, where they differ."""
    heldout_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """`file` only: share of questions in split `heldout` instead of `train`, chosen by a hash of the question; 1.0 holds all of it out."""
    from_split: Annotated[str | None, Later(None)] = None
    """`file` only: which split of a folder, or of a set from `save_to_disk`, is read, by its name there, such as `validation`; None is
    `train`. `split` and `heldout_fraction` then divide these rows."""
    config: Annotated[str | None, Later(None)] = None
    """`file` only: which configuration of a folder is read: one that its README declares, or a folder in it."""
    answer_base: Annotated[Literal[0, 1] | None, Later(None)] = None
    """`file`, `multiple_choice` only: what the first choice's index is; None is 0, questioned where no row's answer is 0."""
    encoding: Annotated[str | None, Later(None)] = None
    """`file` only: encoding of text files that are not UTF-8, by its name in Python, such as `cp1252` or `utf-16`."""
    header: Annotated[tuple[str, ...], Later(())] = ()
    """`file` only: names of the columns of CSV or TSV whose first line is a row already, such as `[question, A, B, C, D, answer]`."""
    control_characters: Annotated[Literal["drop", "clean"], Later("drop")] = "drop"
    """What becomes of a row with control characters in a text, as PDF leaves them: `drop` it, or `clean` it: form feeds become line ends,
    the others are taken out, and `done.json` counts the rows."""
    max_rows: Count | None = None
    """Keep this many rows, chosen by a hash of their ids; None keeps all."""
    # Our choice: single rows are bad in many sets; where the columns are others than expected, all rows are.
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Rows that do not fit the source's schema are dropped and counted; above this share the stage stops."""
    seed: Annotated[int, Between(0, 2**32 - 1, "numpy takes seeds of 32 bits")] = 0
    """For generated sources, and for the choice of rows under `max_rows`."""
    reasoning: Annotated[Literal["refuse", "leave_out", "learn"], Later("refuse")] = "refuse"
    """What becomes of what a row says to have been thought before an answer (`reasoning_content`, `thinking`): such rows are dropped with
    a reason, or it is left out, or learnt as the chat template writes it; in both sides of pairs too."""


class SourceUse(RowsUse):
    """One set of rows: which registered source, which split, from where, and what is done to each."""

    path: str | None = None
    """Local file, or local folder with the hub repository's layout, instead of the hub. Relative to the recipe."""
    licence: str | None = None
    """`file` only: the licence of your rows, such as `CC BY 4.0`; without one the recipe must list the source under
    `allow_unlicensed`."""
    phi: Annotated[FilterUse | Literal["off"] | None, BeforeValidator(_phi)] = None
    """What may identify a person in these rows: `mask` it, `drop` the row, `off`, or settings of data_prep/filters/phi.py
    such as {action: mask, min_score: 0.4}. None is `mask` for source `file` and `off` for published sets."""
    system_prompt: str | None = None
    """File with a system prompt, such as `prompts/exam.md`, for rows that bring none; relative to the recipe, or one of the
    project's own. Its text is part of the stage key."""


class MixItem(Section):
    """One source's share of a mix."""

    name: str
    """A name under `sources` in the recipe."""
    max_rows: Count | None = None
    """Keep at most this many rows of it after filtering."""
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep this share of its rows after filtering, before `max_rows`."""
    epochs: Annotated[float, Between(1e-6, 1000, "each pass over a source is rows of the mix, and a thousand are learnt by heart")] = 1.0
    """How often the rows kept come in the mix: 2.5 is each twice and half of them once more, under ids of their own."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the mix, in rows, that this source is to have; others are cut, never repeated, to make that so."""


Filters = tuple[Annotated[FilterUse, BeforeValidator(_named)], ...]
Mix = Annotated[tuple[Annotated[MixItem, BeforeValidator(_named)], ...], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]


def listed(value: Any) -> Any:
    """Let a recipe write one name, or none, where a list of names would do."""
    return [] if value is None else [value] if isinstance(value, str) else value


class SourceParams(Section):
    """What stage `source` is asked to do."""

    use: RowsUse
    source_version: int
    """Of the source's file: raised when its rows come out otherwise."""
    repository: str | None
    revision: str | None
    """Commit on the hub; None for rows that do not come from there."""
    system_prompt: Annotated[str | None, Later(None)] = None
    """Text that is said first where a row says nothing first."""
    phi: Annotated[FilterUse | None, Later(None)] = None
    """Masks, or drops rows with, what may identify a person."""
    folder_reader: Annotated[int, Later(1)] = 1
    """How the files of a local folder are read: raised when its rows come out otherwise; 1 where there is no folder."""


class DataParams(Section):
    """What stage `data` is asked to do."""

    mix: Mix
    filters: Filters
    seed: int
    kind: Literal["conversation", "pair", "prompt"]
    """Of the records that are written."""
