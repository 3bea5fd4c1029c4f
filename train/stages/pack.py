"""Stage `pack`: conversations to rows of tokens, several conversations to a row. Needs no GPU.

In: `data` (conversations), `tokenizer` (the base stage). Out: `rows.parquet` with `input_ids`, `labels` (-100 where
nothing is learnt: prompts, and the first token of each conversation) and `seq_lengths` (the conversations in a row), and
`dropped.jsonl`. A conversation longer than a row is dropped and counted, never cut.

Answers that the chat template writes otherwise once there is more (`rounds.train.tokens.rendering`) are read and not learnt, and counted
as `answers_not_learnt`; with `each_answer` each of them ends a row of its own, in which it alone is learnt.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from trl import pack_dataset

from rounds.data_prep import progress, records
from rounds.data_prep.pool import in_order
from rounds.data_prep.records import RECORDS
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy
from rounds.train.engine.params import PackParams
from rounds.train.engine.records import ROWS, Counts
from rounds.train.tokens import chat
from rounds.train.tokens.lengths import Lengths, bucket, none_left
from rounds.train.weights import models

logger = logging.getLogger(__name__)
_REWRITTEN = "template_rewrites_history"
_BATCH = 1000
# Conversations are packed a window at a time, so that memory does not grow with their number. At the end of a window
# about half a row stays empty; TRL's own windows, 1000 conversations, fill rows of 8192 to 92 % where answers are short.
_WINDOW_ROWS = 256
# The tokenizer works in threads of its own and holds no lock: one batch is rendered while another is tokenised.
_THREADS = 2
_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])


@dataclass
class _Batch:
    """Tokenised conversations: token rows, for each its source and numbers of tokens and answer tokens, and the dropped
    conversations with the reason."""

    rows: pa.Table
    sources: list[str]
    lengths: list[int]
    answer_tokens: list[int]
    not_learnt: Counter[str]
    """Answers of the kept conversations that no row learns, by reason."""
    dropped: list[tuple[records.Conversation, str]]


@dataclass
class _Counts:
    """Counts of all batches."""

    seen: int = 0
    conversations: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    not_learnt: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    histogram: Counter[str] = field(default_factory=Counter)
    by_source: defaultdict[str, Lengths] = field(default_factory=lambda: defaultdict(Lengths))

    def add(self, batch: _Batch, log: IO[str]) -> None:
        """Count a batch, and write a line for each conversation that is dropped."""
        self.seen += len(batch.lengths) + len(batch.dropped)
        self.conversations += len(batch.lengths)
        self.tokens += sum(batch.lengths)
        self.answer_tokens += sum(batch.answer_tokens)
        self.not_learnt.update(batch.not_learnt)
        self.histogram.update(map(bucket, batch.lengths))
        for source, length, learnt in zip(batch.sources, batch.lengths, batch.answer_tokens, strict=True):
            self.by_source[source].add(length, length, learnt)
        for conversation, reason in batch.dropped:
            self.dropped[reason] += 1
            self.by_source[conversation.source].dropped[reason] += 1
            log.write(json.dumps({"id": conversation.id, "source": conversation.source, "reason": reason}) + "\n")

    def plain(self) -> Counts:
        """Return them as JSON."""
        return {"conversations": self.conversations, "tokens": self.tokens, "answer_tokens": self.answer_tokens,
                **({"answers_not_learnt": dict(self.not_learnt)} if self.not_learnt else {}),
                "dropped": dict(self.dropped), "length_histogram": dict(self.histogram),
                "by_source": {name: lengths.counts() for name, lengths in sorted(self.by_source.items())}}  # fmt: skip


def run(params: PackParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Tokenise, drop what does not fit, and pack by best fit decreasing (TRL's `bfd`)."""
    tokenizer = models.load_tokenizer(policy.read(inputs["tokenizer"]))
    source = inputs["data"] / RECORDS
    total, counts, rows = pq.read_metadata(source).num_rows, _Counts(), 0
    pool = ThreadPoolExecutor(_THREADS)
    batches = in_order(pool, lambda each: _encode(each, tokenizer, params), _batches(source), _THREADS)
    with (
        whole(out / ROWS) as partial,
        (out / "dropped.jsonl").open("w") as log,
        pq.ParquetWriter(partial, _packed(_SCHEMA)) as writer,
    ):
        window: list[pa.Table] = []
        packed = 0
        for batch in batches:
            counts.add(batch, log)
            window.append(batch.rows)
            progress.write(out, min(counts.seen, total), total, "conversations")
            if counts.tokens - packed >= _WINDOW_ROWS * params.max_length:
                rows += _write(window, params.max_length, writer)
                window, packed = [], counts.tokens
        rows += _write(window, params.max_length, writer)
        if not counts.conversations:
            raise none_left("conversation", params.max_length, counts.dropped, out / "dropped.jsonl")
    if number := counts.not_learnt[_REWRITTEN]:
        logger.warning("%d answers are read and not learnt: the chat template writes them otherwise once there is more. "
                       "`sft.each_answer: true` makes a row of each", number)  # fmt: skip
    return {**counts.plain(), "rows": rows, "fill": round(counts.tokens / (rows * params.max_length), 4)}


def _batches(source: Path) -> Iterator[list[records.Conversation]]:
    for number in range(records.batches_in(source)):
        _, batch = records.read_batch(source, number)
        for start in range(0, len(batch), _BATCH):
            yield [each for each in batch[start : start + _BATCH] if isinstance(each, records.Conversation)]


def _encode(batch: list[records.Conversation], tokenizer: Any, params: PackParams) -> _Batch:
    """Tokenise conversations; labels are the answers' tokens, and never a conversation's first: in a packed row that
    would be predicted from another conversation."""
    encoded = chat.encode_conversations(tokenizer, [each.messages for each in batch])
    if params.each_answer:
        batch, encoded = _each_answer(batch, encoded, tokenizer)
    kept: list[tuple[records.Conversation, chat.Encoded]] = []
    dropped: list[tuple[records.Conversation, str]] = []
    for conversation, result in zip(batch, encoded, strict=True):
        reason = result if isinstance(result, str) else _unusable(result, params.max_length)
        if isinstance(result, str) or reason:
            dropped.append((conversation, str(reason)))
        else:
            kept.append((conversation, result))
    ids = pa.array([result.input_ids for _, result in kept], _SCHEMA.field("input_ids").type)
    tokens, starts = ids.values.to_numpy(), ids.offsets.to_numpy()
    labels = np.full(len(tokens), -100, np.int32)
    for start, (_, result) in zip(starts, kept, strict=False):
        for low, high in result.answers:
            labels[start + max(low, 1) : start + high] = tokens[start + max(low, 1) : start + high]
    rows = pa.Table.from_arrays([ids, pa.ListArray.from_arrays(ids.offsets, pa.array(labels))], schema=_SCHEMA)
    answer_tokens = [sum(high - low for low, high in result.answers) for _, result in kept]
    not_learnt = Counter({_REWRITTEN: sum(len(result.left_out) for _, result in kept)})
    not_learnt["weight_0"] = sum(not each.learnt for talk in {talk.id: talk for talk, _ in kept}.values() for each in talk.messages)
    return _Batch(rows, [each.source for each, _ in kept], np.diff(starts).tolist(), answer_tokens, +not_learnt, dropped)


def _each_answer(
    batch: list[records.Conversation], encoded: list[chat.Encoded | str], tokenizer: Any
) -> tuple[list[records.Conversation], list[chat.Encoded | str]]:
    """Put before each conversation one for each of its answers that is not learnt in it, which ends with that answer."""
    if not any(each.left_out for each in encoded if isinstance(each, chat.Encoded)):
        return batch, encoded
    parts = [
        [] if isinstance(each, str) else chat.answers_apart(talk.messages, each.left_out) for talk, each in zip(batch, encoded, strict=True)
    ]
    apart = iter(chat.encode_conversations(tokenizer, [messages for own in parts for messages in own]))
    longer = [
        (talk, result)
        for talk, whole, own in zip(batch, encoded, parts, strict=True)
        for result in (*(next(apart) for _ in own), whole if isinstance(whole, str) else replace(whole, left_out=()))
    ]
    return [talk for talk, _ in longer], [result for _, result in longer]


def _unusable(encoded: chat.Encoded, max_length: int) -> str | None:
    if len(encoded.input_ids) > max_length:
        return "longer_than_max_length"
    return None if encoded.answers else "no_answer_tokens"


def _write(window: list[pa.Table], max_length: int, writer: pq.ParquetWriter) -> int:
    """Pack the conversations of a window, write the rows, and return how many they are."""
    tokens = pa.concat_tables(window) if window else _SCHEMA.empty_table()
    if not len(tokens):
        return 0
    packed = pack_dataset(Dataset(tokens), max_length, "bfd", {"batch_size": None})
    assert isinstance(packed, Dataset)
    rows = cast("pa.Table", packed.with_format("arrow")[:])
    writer.write_table(rows.cast(_packed(_SCHEMA)))
    return len(rows)


def _packed(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field("seq_lengths", pa.list_(pa.int32())))
