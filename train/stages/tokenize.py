"""Stage `tokenize`: preference pairs to token rows under the pair contract. Needs no GPU.

In: `data` (pairs), `tokenizer` (the base stage). Out: `pairs.parquet` with `id`, `group`, `prompt_ids`, `chosen_ids`,
`rejected_ids`, and `dropped.jsonl`. These are exactly the tokens that `reference` scores, and `dpo` or `reward` trains on.

The contract: the prompt is a true token prefix of both sides, with the template's BOS once and one end-of-turn token per
answer and, where it is asked for (`whole`), what the template writes after that. Within `max_length` the longer answer may
take what the prompt leaves, and the prompt at most `max_length` less 32 tokens; a pair that does not fit is dropped when
its prompt is the reason, else its answers are cut at the end to the same budget. A pair whose sides are equal after that is
dropped.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep import progress, records
from rounds.data_prep.pool import in_order
from rounds.data_prep.records import RECORDS
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy
from rounds.train.engine.params import TokenizeParams
from rounds.train.engine.records import PAIRS, Counts
from rounds.train.tokens import chat
from rounds.train.tokens.lengths import Lengths, none_left
from rounds.train.tokens.pair_budget import fit
from rounds.train.weights import models

_BATCH = 500
_PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")
_SCHEMA = pa.schema([("id", pa.string()), ("group", pa.string())] + [(name, pa.list_(pa.int32())) for name in _PARTS])
_THREADS = 2
"""The tokenizer works in threads of its own and holds no lock: one batch is rendered while another is tokenised."""


def run(params: TokenizeParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Tokenise every pair, keep those that honour the contract, and count the others by reason."""
    tokenizer = models.load_tokenizer(policy.read(inputs["tokenizer"]))
    source = inputs["data"] / RECORDS
    total, seen, kept, cut = pq.read_metadata(source).num_rows, 0, 0, 0
    dropped, tokens = Counter(), Counter()
    by_source: defaultdict[str, Lengths] = defaultdict(Lengths)
    pool = ThreadPoolExecutor(_THREADS)
    batches = in_order(pool, lambda each: _encode(each, tokenizer, params), _batches(source), _THREADS)
    with (
        whole(out / PAIRS) as partial,
        pq.ParquetWriter(partial, _SCHEMA) as writer,
        (out / "dropped.jsonl").open("w") as log,
    ):
        for batch in batches:
            rows = []
            for pair, fitted, was_cut in batch:
                if isinstance(fitted, str):
                    dropped[fitted] += 1
                    by_source[pair.source].dropped[fitted] += 1
                    log.write(json.dumps({"id": pair.id, "source": pair.source, "reason": fitted}) + "\n")
                    continue
                cut += was_cut
                kept += 1
                parts = {name: getattr(fitted, name) for name in _PARTS}
                rows.append({"id": pair.id, "group": pair.group, **parts})
                tokens.update({name: len(ids) for name, ids in parts.items()})
                prompt, sides = len(fitted.prompt_ids), (len(fitted.chosen_ids), len(fitted.rejected_ids))
                by_source[pair.source].add(prompt + max(sides), 2 * prompt + sum(sides), sum(sides))
            columns = [pa.array([row[at.name] for row in rows], at.type) for at in _SCHEMA]
            writer.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA))
            seen += len(batch)
            progress.write(out, seen, total, "pairs")
        if not kept:
            raise none_left("pair", params.max_length, dropped, out / "dropped.jsonl")
    means = {f"mean_{name.removesuffix('_ids')}_tokens": round(total / kept, 1) for name, total in tokens.items()}
    return {"pairs": kept, "cut": cut, "dropped": dict(dropped), **means,
            "by_source": {name: lengths.counts() for name, lengths in sorted(by_source.items())}}  # fmt: skip


def _batches(source: Path) -> Iterator[list[records.Pair]]:
    for number in range(records.batches_in(source)):
        _, batch = records.read_batch(source, number)
        for start in range(0, len(batch), _BATCH):
            yield [each for each in batch[start : start + _BATCH] if isinstance(each, records.Pair)]


def _encode(batch: list[records.Pair], tokenizer: Any, params: TokenizeParams) -> list[tuple[records.Pair, chat.EncodedPair | str, bool]]:
    """Tokenise pairs and bring them within the budget: each with what it became, and whether that was cut."""
    found: list[tuple[records.Pair, chat.EncodedPair | str, bool]] = []
    for pair, encoded in zip(batch, chat.encode_pairs(tokenizer, batch, whole=params.whole), strict=True):
        fitted = encoded if isinstance(encoded, str) else fit(encoded, params.max_length)
        found.append((pair, fitted, fitted != encoded))
    return found
