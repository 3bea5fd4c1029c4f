"""The source registry: one file per dataset; `load("pubmedqa")` imports the file of that name.

A source's file holds `SOURCE = Source(...)` and the function that turns one row of the set into a record. A row that
does not fit raises `RowError` with a stable reason: it is dropped and counted, never fatal by itself.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.records import Conversation, Kind, Pair, Record, answers_of, characters_of, thoughts_of
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.turns import Row, RowError, check_scores, refuse_media, refuse_unlearnt, without_reasoning
from rounds.data_prep.unread import Unread

__all__ = ["Companion", "Row", "RowError", "Source", "load", "names"]
# Twice what Llama 3.1, with the longest window of the base models in use here (131,072 tokens), reads of English at 4.5
# characters a token: no stage could use a longer row, and one of gigabytes would take the memory of all of them.
MAX_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Companion:
    """A hub dataset that a source reads, at a commit, and which of its files."""

    repository: str
    revision: str | None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What is known about one dataset before any row is read.

    `splits` maps each split on offer to the kind of record it yields. `rows(use)` yields the raw rows of a split (or a
    `RowError` in place of a row that cannot be read), and `to_record(row, index, use)` converts one, or raises
    `RowError`. A row may carry its number in its file and the file's name under `rounds.data_prep.files.ROW` and `FILE`.
    `version` is part of the stage key: raise it when the conversion changes.
    """

    name: str
    description: str
    licence: str
    splits: Mapping[str, Kind]
    rows: Callable[[SourceUse], Iterable[Row | RowError]]
    to_record: Callable[[Row, int, SourceUse], Record]
    repository: str | None = None
    """Hub dataset id, for sources that live there."""
    revision: str | None = None
    """Pinned commit of the repository."""
    verified: bool = True
    """False where id, revision, files or columns were in no public copy that could be read when the file was written."""
    files: tuple[str, ...] = ()
    """Patterns of the repository's files that the source reads, for `rounds fetch`; empty where it may read all."""
    companions: tuple[Companion, ...] = ()
    """Further hub datasets that the source reads."""
    homes: Mapping[str, Companion] = field(default_factory=dict)
    """Splits that are read from another hub dataset than `repository`."""
    origin: str = ""
    """Address and commit of the set that the source was written for, where it is not on the hub."""
    columns: tuple[str, ...] = ()
    """Columns that a row must have."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Rows of a split, as its card or paper gives them: planning counts with them before anything is fetched."""
    mean_tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Mean tokens of a row's prompt (all before the last answer) and of one answer, in Llama-3's tokenizer, by split; for
    planning only. Either counted on a sample, or from the bytes that the set's card gives at 4.5 bytes a token."""
    evaluation_only: tuple[str, ...] = ()
    """Splits that only evaluation and decontamination may read."""
    kind_by_format: Mapping[str, Kind] = field(default_factory=dict)
    """For `file`: the kind follows from the row format instead of the split."""
    columns_by_format: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For `file`: the columns that a row must have follow from the row format."""
    reads_by_format: Callable[[SourceUse, Collection[str]], Collection[str]] | None = None
    """For `file`: which of a row's columns it reads before `to_record` does."""
    check_use: Callable[[SourceUse], None] | None = None
    """What this source asks of a use beyond the rules of `check`; raises `UserError`."""
    question: Callable[[str], str] | None = None
    """From a record's id to the question that it asks, where several rows ask one in other words: such rows are no
    independent evidence. None: rows with the same prompt ask the same."""
    version: int = 1

    def check(self, use: SourceUse) -> None:
        """Raise `UserError` where `use` asks for what the source does not offer. No row is read: planning calls it."""
        if use.split not in self.splits:
            way = "; `from_split` reads a split of a folder by its name" if self.kind_by_format else ""
            raise UserError(f"source {self.name!r} has no split {use.split!r}: {nearest(use.split, self.splits)}{way}")
        if not self.kind_by_format:
            for name in ("format", "columns", "heldout_fraction", "licence", "from_split", "config", "encoding", "header", "answer_base"):
                if getattr(use, name) not in (None, "", 0.0, {}, ()):
                    raise UserError(f"source {self.name!r}: `{name}` is for source `file` only")
        if self.check_use is not None:
            self.check_use(use)

    def kind(self, use: SourceUse) -> Kind:
        """Return the kind of record that `use` yields. Raises `UserError` like `check`."""
        self.check(use)
        return self.kind_by_format[use.format] if use.format and self.kind_by_format else self.splits[use.split]

    def convert(self, row: Row | RowError, index: int, use: SourceUse, unread: Unread | None = None) -> Record:
        """Return the record of what `rows` gave; `unread` notes which columns were asked for.

        Raises `RowError`: that of `to_record`, of `turns.refuse_unlearnt` and, of a pair, `turns.check_scores`; `has_reasoning` where
        `use.reasoning` refuses it; of own rows, `turns.refuse_media`; or `too_many_characters`.
        """
        if isinstance(row, RowError):
            raise row
        if use.reasoning == "leave_out":
            row = without_reasoning(row)
        if unread is not None:
            row = unread.watch(row)
        refuse_unlearnt(row)
        record = self.to_record(row, index, use)
        if isinstance(record, Pair):
            check_scores(row)
        turns = record.messages if isinstance(record, Conversation) else record.prompt
        if use.reasoning == "refuse" and any(thoughts_of(record)):
            raise RowError("has_reasoning")
        if self.kind_by_format:
            for said in (*(turn.content for turn in turns), *answers_of(record)):
                refuse_media(said)
        if characters_of(record) > MAX_CHARACTERS:
            raise RowError("too_many_characters")
        return record

    def home(self, use: SourceUse) -> Companion | None:
        """Return the hub dataset that a split lives in, at the commit that `use` asks for, else the pinned one."""
        own = Companion(self.repository, self.revision, self.files) if self.repository else None
        found = self.homes.get(use.split, own)
        return replace(found, revision=use.revision) if found and use.revision else found

    def not_used(self, use: SourceUse, unread: Unread) -> list[str]:
        """Return the columns, and fields of turns, that say something and that nobody read."""
        names = unread.names()
        read = self.reads_by_format(use, names) if self.reads_by_format else ()
        return [name for name in names if name not in read]

    def columns_of(self, use: SourceUse) -> tuple[str, ...]:
        """Return the columns that a row must have."""
        return self.columns_by_format.get(use.format or "", self.columns)


def names() -> list[str]:
    """List the registered sources: the files of this folder."""
    return list(_files())


@functools.cache
def _files() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def load(name: str) -> Source:
    """Return the source of that name, or raise `UserError` with the nearest valid names."""
    if name not in names():
        raise UserError(f"unknown source {name!r}: {nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}").SOURCE
