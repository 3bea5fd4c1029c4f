"""Stages `answers` and `sample`: what a policy writes, to held-out prompts to be measured, or to those that it is to learn from.

In: `policy`; `prompts.NAME` (records of any kind) for each set that is asked for, or one part of it. Out: `NAME.parquet`, one row an answer
(`train/generation/samples.py`). No judge and no metric is in its key: another one writes nothing anew.

Prompts are taken in an order by hash, so the first of them are a fair sample, the same for every policy. Blocks of them are cut by that
order alone; each is written whole, by whichever process takes it, and stays: a kill, a lost node, another cluster file cost a block.
Counts: by set, how long the answers are, whether they end, how often they repeat, and which prompts were dropped, by reason. A prompt
that does not fit with `max_new_tokens` is dropped as `too_long`, never cut.
"""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoConfig, PreTrainedTokenizerBase

from rounds.data_prep import progress, records
from rounds.data_prep.errors import UserError
from rounds.data_prep.turns import with_system
from rounds.train.config.cluster import Machine
from rounds.train.config.decoding import EngineName
from rounds.train.engine import policy, ranks
from rounds.train.engine.params import AnswersParams, PromptSet
from rounds.train.engine.policy import Policy
from rounds.train.engine.records import STOP, Counts
from rounds.train.generation import asked, blocks, decoding, engine, samples
from rounds.train.generation.engine import Ask
from rounds.train.tokens import chat
from rounds.train.weights import models

BLOCK_ANSWERS = 256
"""About two minutes of an 8B model at 512 tokens in batches of 32; what a lost process costs, and how soon one stops when asked."""
_SECONDS = b"seconds"


@dataclass(frozen=True)
class Block:
    """Prompts of one set that are answered together."""

    wanted: PromptSet
    prompts: Sequence[tuple[str, list[int]]]
    """Id, and tokens."""


def run(params: AnswersParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Answer all prompts, with the other processes of the row; one that was interrupted goes on with the blocks that are missing."""
    models.set_threads(machine)
    described = policy.read(inputs["policy"])
    tokenizer = models.load_tokenizer(described)
    window = _window(described, params.max_length)
    plan: dict[str, Block] = {}
    dropped: dict[str, dict[str, int]] = {}
    for wanted in params.sets:
        found, dropped[wanted.name] = _prompts(tokenizer, wanted, inputs[f"prompts.{wanted.name}"], window)
        size = max(1, BLOCK_ANSWERS // wanted.num_answers)
        for start in range(0, len(found), size):
            plan[f"{wanted.name}.{start // size:06}"] = Block(wanted, found[start : start + size])
    folder = out / "cache"
    ends = models.end_tokens([models.generation_settings(_start(inputs["policy"])), models.generation_settings(described)], tokenizer)
    subject = engine.Subject(described, ends, machine, window, folder)
    total = sum(len(block.prompts) * block.wanted.num_answers for block in plan.values())
    with ExitStack() as stack:
        opened: dict[EngineName, engine.Write] = {}

        def write(name: str) -> pa.Table:
            wanted = plan[name].wanted
            if wanted.engine not in opened:
                opened[wanted.engine] = stack.enter_context(engine.opened(wanted.engine, subject))
            return _written(opened[wanted.engine], plan[name], params.seed, tokenizer)

        def tell(done: int) -> None:
            if ranks.rank() == 0:
                progress.write(out, total * done // max(1, len(plan)), total, "answers")

        blocks.make(folder / "blocks", list(plan), write, (out / STOP).exists, tell)
    return {"sets": _joined(params, plan, folder / "blocks", out, tokenizer), "dropped": dropped} if ranks.rank() == 0 else {}


def _start(folder: Path) -> Policy:
    """Return the base that a policy was trained from: it says how it was published to write."""
    return policy.read(policy.chain(folder)[0])


def _window(described: Policy, max_length: int) -> int:
    config = AutoConfig.from_pretrained(described.weights, revision=described.revision or "main", trust_remote_code=False)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(max_length, limit) if limit else max_length


def _prompts(
    tokenizer: PreTrainedTokenizerBase, wanted: PromptSet, source: Path, window: int
) -> tuple[list[tuple[str, list[int]]], dict[str, int]]:
    """Return the prompts of a set, each with its id, and the others counted by reason. Raises `UserError` when none can be answered."""
    rows = asked.first(source, wanted)
    encoded = chat.encode_prompts(tokenizer, [with_system(records.prompt_of(row), wanted.system_prompt) for row in rows])
    kept: list[tuple[str, list[int]]] = []
    dropped: Counter[str] = Counter()
    for row, tokens in zip(rows, encoded, strict=True):
        if isinstance(tokens, str):
            dropped[tokens] += 1
        elif len(tokens) + wanted.max_new_tokens > window:
            dropped["too_long"] += 1
        else:
            kept.append((row.id, tokens))
    if not kept:
        raise UserError(
            f"none of the {len(rows)} prompts of {wanted.name!r} can be answered: a prompt with {wanted.max_new_tokens} new tokens must "
            f"fit {window} tokens, the lesser of `max_length` and what the model reads; dropped: {dict(dropped)}"
        )
    return kept, dict(dropped)


def _written(write: engine.Write, block: Block, seed: int, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
    """Answer a block; how long it took stands in the table's metadata."""
    began, wanted = time.monotonic(), block.wanted
    each = [(name, number, ids) for name, ids in block.prompts for number in range(wanted.num_answers)]
    asks = [Ask(ids, decoding.seed_of(seed, name, number)) for name, number, ids in each]
    rows = [
        samples.Sample(name, number, _text(tokenizer, reply.token_ids), reply.token_ids, len(reply.token_ids), reply.ended, reply.logprob,
                       ask.seed)
        for (name, number, _), ask, reply in zip(each, asks, write(asks, wanted), strict=True)
    ]  # fmt: skip
    return samples.table(rows).replace_schema_metadata({_SECONDS: f"{time.monotonic() - began:.3f}"})


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode with control tokens kept: one within an answer must be seen."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _joined(
    params: AnswersParams, plan: dict[str, Block], folder: Path, out: Path, tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, Any]]:
    """Write each set's file of its blocks, and count."""
    found = {}
    for wanted in params.sets:
        tables = [pq.read_table(blocks.file_of(folder, name)) for name, block in plan.items() if block.wanted is wanted]
        seconds = sum(float((each.schema.metadata or {}).get(_SECONDS, 0)) for each in tables)
        whole = pa.concat_tables([each.replace_schema_metadata(None) for each in tables]).combine_chunks()
        samples.write(samples.file_of(out, wanted.name), whole)
        rows = [samples.Sample(**row) for row in whole.to_pylist()]
        again = tokenizer([row.answer for row in rows], add_special_tokens=False)["input_ids"]
        counted = samples.counts(rows)
        found[wanted.name] = {
            **counted,
            "retokenised_differently": sum(list(ids) != row.token_ids for ids, row in zip(again, rows, strict=True)),
            "tokens_per_second": round(counted["tokens"] / seconds, 1) if seconds else None,
        }
    return found
