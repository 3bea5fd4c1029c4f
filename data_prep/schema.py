"""The parts of a recipe that speak of data: sources, filters and mixes. Defaults live here and nowhere else."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of a recipe: frozen, and an unknown field is a mistake, not an extra."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


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


class SourceUse(Section):
    """One set of rows: which registered source, which split, from where."""

    source: str
    """Name of a file in data_prep/sources, such as `ultrafeedback`; `file` brings your own rows."""
    split: str = "train"
    """A split that the source offers. A benchmark's test split can be used for evaluation only."""
    path: str | None = None
    """Local file, or local folder with the hub repository's layout, instead of the hub. Relative to the recipe."""
    revision: str | None = None
    """Commit of the hub dataset, when not the one pinned in the source's file."""
    format: (
        Literal[
            "messages",
            "question_answer",
            "summary",
            "dialogue",
            "classification",
            "multiple_choice",
            "preference",
            "graded",
        ]
        | None
    ) = None
    """`file` only: the shape of a row; see data_prep/sources/file.py for one example row of each."""
    columns: dict[str, str] = Field(default_factory=dict)
    """`file` only: our column name -> the column's name in your file, where they differ."""
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """`file` only: share of questions in split `heldout` instead of `train`, chosen by a hash of the question."""
    max_rows: Annotated[int, Field(gt=0)] | None = None
    """Keep this many rows, chosen by a hash of their ids; None keeps all."""
    # Our choice: single rows are bad in many sets; where the columns are others than expected, all rows are.
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Rows that do not fit the source's schema are dropped and counted; above this share the stage stops."""
    licence: str | None = None
    """`file` only: the licence of your rows, such as `CC BY 4.0`; without one the recipe must list the source under
    `allow_unlicensed`."""
    phi: Annotated[FilterUse | Literal["off"] | None, BeforeValidator(_phi)] = None
    """What may identify a person in these rows: `mask` it, `drop` the row, `off`, or settings of data_prep/filters/phi.py
    such as {action: mask, min_score: 0.4}. None is `mask` for source `file` and `off` for published sets."""
    system_prompt: str | None = None
    """File with a system prompt, such as `prompts/exam.md`, for rows that bring none; relative to the recipe, or one of the
    project's own. Its text is part of the stage key."""
    seed: int = 0
    """For generated sources, and for the choice of rows under `max_rows`."""


class MixItem(Section):
    """One source's share of a mix."""

    name: str
    """A name under `sources` in the recipe."""
    max_rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most this many rows of it after filtering."""
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep this share of its rows after filtering, before `max_rows`."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """How often the rows kept come in the mix: 2.5 is each twice and half of them once more, under ids of their own."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the mix, in rows, that this source is to have; others are cut, never repeated, to make that so."""


Filters = tuple[Annotated[FilterUse, BeforeValidator(_named)], ...]
Mix = Annotated[tuple[Annotated[MixItem, BeforeValidator(_named)], ...], Field(min_length=1)]


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]


Count = Annotated[int, Field(gt=0)]


Positive = Annotated[float, Field(gt=0)]


def listed(value: Any) -> Any:
    """Let a recipe write one name, or none, where a list of names would do."""
    return [] if value is None else [value] if isinstance(value, str) else value
