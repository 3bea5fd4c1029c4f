"""Stage `tokenize`: preference pairs to token rows under the pair contract. Needs no GPU.

In: `data` (pairs), `tokenizer` (the base stage). Out: `pairs.parquet` with `id`, `group`, `prompt_ids`, `chosen_ids`,
`rejected_ids`, and `dropped.jsonl`. These are exactly the tokens that `reference` scores and `dpo` trains on.

The contract: the prompt is a true token prefix of both sides, with the template's BOS once and one end-of-turn token per
answer. Within `max_length` the longer answer may take what the prompt leaves, and the prompt at most `max_length` less
32 tokens; a pair that does not fit is dropped when its prompt is the reason, else its answers are cut at the end to the
same budget. A pair whose sides are equal after that is dropped.
"""

import json
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import progress, records
from data_prep.errors import UserError
from data_prep.schema import Section
from train import chat, models, policy
from train.cluster import Row
from train.lengths import Lengths

_BATCH = 500
_MIN_ANSWER_TOKENS = 32
"""Room that a prompt must leave for the answers; below that a cut pair says little about which answer is better."""
_SCHEMA = pa.schema(
    [("id", pa.string()), ("group", pa.string())]
    + [(name, pa.list_(pa.int32())) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
)


class Params(Section):
    max_length: int


def run(params: dict, inputs: dict[str, Path], out: Path, machine: Row) -> dict[str, Any]:
    """Tokenise every pair, keep those that honour the contract, and count the others by reason."""
    asked = Params.model_validate(params)
    tokenizer = models.load_tokenizer(policy.read(inputs["tokenizer"]))
    pairs = list(records.read_records(inputs["data"] / "records.parquet"))
    dropped, kept, cut, tokens = Counter(), 0, 0, Counter()
    by_source: defaultdict[str, Lengths] = defaultdict(Lengths)
    with pq.ParquetWriter(out / "pairs.parquet.partial", _SCHEMA) as writer, (out / "dropped.jsonl").open("w") as log:
        for start in range(0, len(pairs), _BATCH):
            rows, batch = [], pairs[start : start + _BATCH]
            for pair, encoded in zip(batch, chat.encode_pairs(tokenizer, batch), strict=True):  # type: ignore[arg-type]
                fitted = encoded if isinstance(encoded, str) else fit(encoded, asked.max_length)
                if isinstance(fitted, str):
                    dropped[fitted] += 1
                    by_source[pair.source].dropped[fitted] += 1
                    log.write(json.dumps({"id": pair.id, "source": pair.source, "reason": fitted}) + "\n")
                    continue
                cut += fitted != encoded
                kept += 1
                rows.append({"id": pair.id, "group": pair.group, **asdict(fitted)})
                tokens.update({name: len(ids) for name, ids in asdict(fitted).items()})
                prompt, sides = len(fitted.prompt_ids), (len(fitted.chosen_ids), len(fitted.rejected_ids))
                by_source[pair.source].add(prompt + max(sides), 2 * prompt + sum(sides), sum(sides))
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            progress.write(out, min(start + _BATCH, len(pairs)), len(pairs), "pairs")
    if not kept:
        raise UserError(f"no pair is left to train on; dropped: {dict(dropped)}")
    (out / "pairs.parquet.partial").rename(out / "pairs.parquet")
    means = {f"mean_{name.removesuffix('_ids')}_tokens": round(total / kept, 1) for name, total in tokens.items()}
    return {"pairs": kept, "cut": cut, "dropped": dict(dropped), **means,
            "by_source": {name: lengths.counts() for name, lengths in sorted(by_source.items())}}  # fmt: skip


def fit(pair: chat.EncodedPair, max_length: int) -> chat.EncodedPair | str:
    """Bring a pair within `max_length` tokens a side, or say why it cannot be used."""
    if pair.chosen_ids == pair.rejected_ids:
        return "identical_sides"
    room = max_length - len(pair.prompt_ids)
    longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
    if room < min(longest, _MIN_ANSWER_TOKENS):
        return "prompt_too_long"
    fitted = chat.EncodedPair(pair.prompt_ids, pair.chosen_ids[:room], pair.rejected_ids[:room])
    return "identical_after_truncation" if fitted.chosen_ids == fitted.rejected_ids else fitted
