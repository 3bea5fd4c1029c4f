"""The nouns of data preparation, and how they are kept on disk.

In: nothing. Out: frozen records without I/O (`Conversation`, `Pair`, `Question`, `Prompt`), and parquet files of them that
`datasets.load_dataset("parquet", ...)` and pandas open as they are. A file holds one kind of record.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rounds.data_prep.errors import UserError
from rounds.data_prep.whole import whole

if TYPE_CHECKING:  # a quarter of a second, which planning has no use for: imported where a file is read or written
    import pyarrow as pa

Role = Literal["system", "user", "assistant"]
RECORDS = "records.parquet"
"""The file of a `source` or `data` stage."""
BATCH_ROWS = 4096
# Of rows of the usual length 4,096 hold 9 million characters; a batch of giants must not hold a gigabyte.
BATCH_CHARACTERS = 1 << 26


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    learnt: bool = True
    """Of an answer: it is imitated. Where not, it is only read, as what was said before."""
    reasoning: str = ""
    """Of an answer: what was thought before it, for templates that write that."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Something to imitate: an optional system turn, then user and assistant turns, ending with the assistant."""

    id: str
    source: str
    messages: tuple[Message, ...]
    group: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, `chosen` preferred over `rejected`. The prompt ends with a user turn."""

    id: str
    source: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str = ""
    chosen_reasoning: str = ""
    """What was thought before the chosen answer, for templates that write that."""
    rejected_reasoning: str = ""
    """What was thought before the rejected answer."""
    rejected_ending: str = ""
    """`cut`: it was cut off where it stands, so no end is learnt after it."""


@dataclass(frozen=True, slots=True)
class Question:
    """A closed question: `prompt` as the model is asked it, the full texts of its `choices`, and which is right.

    `answer` is the index of the right choice. Evaluation scores the likelihood of each choice's whole text.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    choices: tuple[str, ...]
    answer: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something to be answered freely: it ends with a user turn, and what is written is measured, or made into pairs."""

    id: str
    source: str
    prompt: tuple[Message, ...]
    answer: str | None = None
    """The right answer as a text, where one is known: of a sum the number, of a closed question the right choice."""
    choices: tuple[str, ...] = ()
    """The choices that the prompt names, where it names some."""
    details: str = ""
    """An object of JSON with what a metric of this set must know beside, such as IFEval's instructions; empty where nothing."""
    group: str = ""


Record = Conversation | Pair | Question | Prompt
Kind = Literal["conversation", "pair", "question", "prompt"]

READABLE: dict[str, tuple[Kind, ...]] = {
    "conversation": ("conversation", "question"),
    "pair": ("pair",),
    "prompt": ("conversation", "pair", "question", "prompt"),
}
"""Of which kinds a set of a kind is made. All have a prompt to answer (`prompt_of`)."""
_KINDS: dict[type, Kind] = {Conversation: "conversation", Pair: "pair", Question: "question", Prompt: "prompt"}
_CLASSES: dict[str, type] = {kind: each for each, kind in _KINDS.items()}
_RARE = ("chosen_reasoning", "rejected_reasoning", "rejected_ending")
"""Columns that say something where it is unusual only, as `reasoning` of a message does; files of earlier releases have none of them."""


@functools.cache
def schemas() -> dict[str, pa.Schema]:
    """Return the columns of a file of each kind."""
    import pyarrow as pa

    text, texts, messages = pa.string(), pa.list_(pa.string()), _messages()
    common = [("id", text), ("source", text), ("group", text)]
    return {
        "conversation": pa.schema([*common, ("messages", messages)]),
        "pair": pa.schema([*common, ("prompt", messages), ("chosen", text), ("rejected", text), *((name, text) for name in _RARE)]),
        "question": pa.schema([*common, ("prompt", messages), ("choices", texts), ("answer", pa.int32())]),
        "prompt": pa.schema([*common, ("prompt", messages), ("answer", text), ("choices", texts), ("details", text)]),
    }


@functools.cache
def _messages() -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("learnt", pa.bool_()), ("reasoning", pa.string())]))


def kind_of(record: Record) -> Kind:
    """Name the record's kind as it is spelled in files and recipes."""
    return _KINDS[type(record)]


def prompt_of(record: Record) -> tuple[Message, ...]:
    """Return the turns that the model is asked to answer: all but the last turn of a conversation."""
    return record.messages[:-1] if isinstance(record, Conversation) else record.prompt


def to_prompt(record: Record) -> Prompt:
    """Return what a record asks, with the right answer where it is known: a question's, not that of a conversation or a pair."""
    if isinstance(record, Prompt):
        return record
    right, choices = (record.choices[record.answer], record.choices) if isinstance(record, Question) else (None, ())
    return Prompt(record.id, record.source, prompt_of(record), right, choices, group=record.group)


def answers_of(record: Record) -> tuple[str, ...]:
    """Return the answer texts of a record: one for a conversation, two for a pair, every choice of a question; of a prompt those known."""
    if isinstance(record, Conversation):
        return (record.messages[-1].content,)
    if isinstance(record, Prompt):
        return record.choices or ((record.answer,) if record.answer else ())
    return (record.chosen, record.rejected) if isinstance(record, Pair) else record.choices


def thoughts_of(record: Record) -> tuple[str, ...]:
    """Return what was thought before the answers of a record; empty texts where nothing was."""
    if isinstance(record, Pair):
        return (*(turn.reasoning for turn in record.prompt), record.chosen_reasoning, record.rejected_reasoning)
    return tuple(turn.reasoning for turn in (record.messages if isinstance(record, Conversation) else record.prompt))


def prompt_id(record: Record) -> str:
    """Return the id that a record's prompt has in its set, or nothing: the group, where the record's id begins with it."""
    return record.group if record.group and record.id.startswith(f"{record.group}:") else ""


def characters_of(record: Record) -> int:
    """Count the characters of all turns and answers of a record."""
    turns = record.messages if isinstance(record, Conversation) else record.prompt
    answers = () if isinstance(record, Conversation) else answers_of(record)
    return sum(len(turn.content) for turn in turns) + sum(map(len, answers)) + sum(map(len, thoughts_of(record)))


def stable_hash(*parts: object) -> int:
    """Hash the parts to 64 bits, the same in every process and on every machine (Python's `hash` is not)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def write_records(path: Path, records: Iterable[Record], kind: Kind) -> int:
    """Write records of one kind as parquet, in batches, and return how many. The file appears only when complete."""
    import pyarrow.parquet as pq

    schema, count, size, batch = schemas()[kind], 0, 0, []
    with whole(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for record in records:
            batch.append(record)
            count += 1
            size += characters_of(record)
            if len(batch) == BATCH_ROWS or size > BATCH_CHARACTERS:
                writer.write_table(to_table(batch, kind))
                batch.clear()
                size = 0
        if batch:
            writer.write_table(to_table(batch, kind))
    return count


def to_table(records: Sequence[Record], kind: Kind) -> pa.Table:
    """Return records of one kind as an Arrow table in the columns of their file."""
    import pyarrow as pa

    schema = schemas()[kind]
    return pa.Table.from_arrays([_column([getattr(each, at.name) for each in records], at) for at in schema], schema=schema)


def read_kind(path: Path) -> Kind:
    """Tell the kind of record in a file from its columns."""
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    for kind, schema in schemas().items():
        if [*names, *(name for name in _RARE if name in schema.names and name not in names)] == schema.names:
            return kind  # type: ignore[return-value]
    raise UserError(f"{path}: columns {names} are those of no record kind; expected one of {list(schemas())}")


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file that `write_records` wrote, in order, holding one batch in memory at a time."""
    for group in range(batches_in(path)):
        yield from read_batch(path, group)[1]


def batches_in(path: Path) -> int:
    """Return how many batches a file has: its row groups, of `BATCH_ROWS` rows each where `write_records` wrote it."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_row_groups


def read_batch(path: Path, number: int) -> tuple[pa.Table, list[Record]]:
    """Return a batch of a file as a table and as its records, for a stage that passes most rows on as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = read_kind(path)
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(number)
    for name in schemas()[kind].names[len(table.schema.names) :]:
        table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    table = table.cast(schemas()[kind]).combine_chunks()
    return table, list(map(_CLASSES[kind], *(_values(table, field.name) for field in dataclasses.fields(_CLASSES[kind]))))


def _column(values: list[Any], field: pa.Field) -> pa.Array:
    """Build a column; that of messages from flat lists of their fields, which is three times as fast. What a message says only where
    it is unusual, and files of earlier releases do not say at all, is null where it is not."""
    import pyarrow as pa

    if field.name in _RARE:
        return pa.array([each or None for each in values], field.type)
    if field.type != _messages():
        return pa.array(values, field.type)
    messages = list(itertools.chain.from_iterable(values))
    parts = [pa.array([getattr(each, name) for each in messages], pa.string()) for name in ("role", "content")]
    parts += [pa.array([None if each.learnt else False for each in messages], pa.bool_())]
    parts += [pa.array([each.reasoning or None for each in messages], pa.string())]
    ends = itertools.accumulate(map(len, values), initial=0)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.StructArray.from_arrays(parts, list(Message.__slots__)))


def _values(table: pa.Table, name: str) -> list[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[name]
    if name in _RARE:
        return [each or "" for each in column.to_pylist()]
    if column.type != _messages():
        return list(map(tuple, column.to_pylist())) if pa.types.is_list(column.type) else column.to_pylist()
    messages = [message for chunk in column.chunks for message in _read_messages(chunk.flatten())]
    ends = itertools.accumulate(pc.call_function("list_value_length", [column]).to_pylist(), initial=0)
    return [tuple(messages[start:end]) for start, end in itertools.pairwise(ends)]


def _read_messages(values: pa.StructArray) -> Iterator[Message]:
    roles, contents, learnt, reasoning = values.flatten()
    if learnt.null_count == reasoning.null_count == len(values):
        return map(Message, roles.to_pylist(), contents.to_pylist())
    said = zip(roles.to_pylist(), contents.to_pylist(), learnt.to_pylist(), reasoning.to_pylist(), strict=True)
    return (Message(role, content, is_learnt is not False, thought or "") for role, content, is_learnt, thought in said)
