"""Stage `pack`: conversations to rows of tokens, several conversations to a row. Needs no GPU.

In: `data` (conversations), `tokenizer` (the base stage). Out: `rows.parquet` with `input_ids`, `labels` (-100 where
nothing is learnt: prompts, and the first token of each conversation) and `seq_lengths` (the conversations in a row), and
`dropped.jsonl`. A conversation longer than a row is dropped and counted, never cut.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from trl import pack_dataset

from data_prep import progress, records
from data_prep.errors import UserError
from data_prep.schema import Section
from train import chat, models, policy
from train.cluster import Row
from train.lengths import Lengths, bucket

_BATCH = 1000
_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])


class Params(Section):
    max_length: int


def run(params: dict, inputs: dict[str, Path], out: Path, machine: Row) -> dict[str, Any]:
    """Tokenise, drop what does not fit, and pack by best fit decreasing (TRL's `bfd`)."""
    asked = Params.model_validate(params)
    tokenizer = models.load_tokenizer(policy.read(inputs["tokenizer"]))
    counts = _tokenise(asked, tokenizer, inputs["data"] / "records.parquet", out)
    if not counts["conversations"]:
        raise UserError(f"no conversation is left to train on; dropped: {counts['dropped']}")
    tokens = Dataset.from_parquet(str(out / "cache" / "tokens.parquet"), cache_dir=str(out / "cache"))
    assert isinstance(tokens, Dataset)
    packed = pack_dataset(tokens, asked.max_length, "bfd")
    assert isinstance(packed, Dataset)
    packed.to_parquet(str(out / "rows.parquet.partial"))
    (out / "rows.parquet.partial").rename(out / "rows.parquet")
    fill = counts["tokens"] / (len(packed) * asked.max_length)
    return {**counts, "rows": len(packed), "fill": round(fill, 4)}


def _tokenise(asked: Params, tokenizer: Any, source: Path, out: Path) -> dict[str, Any]:
    (out / "cache").mkdir(exist_ok=True)
    total, dropped = pq.read_metadata(source).num_rows, Counter()
    counts = {"conversations": 0, "tokens": 0, "answer_tokens": 0}
    histogram: Counter[str] = Counter()
    by_source: defaultdict[str, Lengths] = defaultdict(Lengths)
    done = 0
    with (
        pq.ParquetWriter(out / "cache" / "tokens.parquet", _SCHEMA) as writer,
        (out / "dropped.jsonl").open("w") as log,
    ):
        for batch in _batches(records.read_records(source)):
            rows = []
            encoded = chat.encode_conversations(tokenizer, [conversation.messages for conversation in batch])
            for conversation, result in zip(batch, encoded, strict=True):
                reason = result if isinstance(result, str) else _unusable(result, asked.max_length)
                if reason or isinstance(result, str):
                    reason = str(reason)
                    dropped[reason] += 1
                    by_source[conversation.source].dropped[reason] += 1
                    log.write(
                        json.dumps({"id": conversation.id, "source": conversation.source, "reason": reason}) + "\n"
                    )
                    continue
                labels = [t if m else -100 for t, m in zip(result.input_ids, result.answer_mask, strict=True)]
                labels[0] = -100  # in a packed row this token would be predicted from another conversation
                rows.append({"input_ids": result.input_ids, "labels": labels})
                counts["conversations"] += 1
                counts["tokens"] += len(labels)
                counts["answer_tokens"] += sum(result.answer_mask)
                histogram[bucket(len(labels))] += 1
                by_source[conversation.source].add(len(labels), len(labels), sum(result.answer_mask))
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            done += len(batch)
            progress.write(out, done, total, "conversations")
    return {**counts, "dropped": dict(dropped), "length_histogram": dict(histogram),
            "by_source": {name: lengths.counts() for name, lengths in sorted(by_source.items())}}  # fmt: skip


def _unusable(encoded: chat.Encoded, max_length: int) -> str | None:
    if len(encoded.input_ids) > max_length:
        return "longer_than_max_length"
    return None if any(encoded.answer_mask) else "no_answer_tokens"


def _batches(items: Iterator[Any]) -> Iterator[list[records.Conversation]]:
    batch: list[records.Conversation] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
