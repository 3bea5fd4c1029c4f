"""Rows as a model will read them, with what it learns from marked: for `rounds data preview`.

In: a plan, and a name under its sources. Out: texts for a terminal. Rows come from the furthest finished stage that holds
them; where none is finished they are read from the source itself, and treated as its stage would treat them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.text import Text
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rounds.data_prep import records, rewrite, sources
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS, Conversation, Message, Pair, Record
from rounds.data_prep.render import to_conversation
from rounds.data_prep.schema import SourceParams, SourceUse
from rounds.train.config.recipe import Hub, Local
from rounds.train.engine import policy, store
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.params import PackParams, TokenizeParams
from rounds.train.plan.pipeline import Plan
from rounds.train.tokens import chat, pair_budget
from rounds.train.weights import models

LEARNT, READ, WORSE = "bold green", "dim", "red"
_ROLES = {"system": "magenta", "user": "cyan", "assistant": LEARNT}


@dataclass(frozen=True)
class Rows:
    """Some rows of a source, and where they were found."""

    records: list[Record]
    found: str
    max_length: int | None
    """Tokens that training reads of a row at most, where a set of the recipe takes rows of this source."""


def rows(plan: Plan, root: Path, name: str, count: int) -> Rows:
    """Return the first rows of a source. Raises `UserError` where the recipe has none of that name, or no row fits."""
    own = next((stage for stage in plan.stages if stage.name == f"source.{name}"), None)
    if own is None:
        names = ", ".join(stage.name.removeprefix("source.") for stage in plan.stages if stage.kind.reads_source)
        raise UserError(f"no stage of this recipe reads a source {name!r}; it reads {names}")
    longest = _max_length(plan, own)
    for stage in plan.stages:
        read = [key.removeprefix("source.") for key, parent in stage.inputs.items() if parent.key == own.key]
        if stage.kind.mixes and read and store.done(store.folder(root, stage)):
            path = store.folder(root, stage) / RECORDS
            taken = list(_first(path, read[0], count))
            if taken:
                return Rows(taken, f"of {stage.name}: after filters and mix", longest)
    if store.done(store.folder(root, own)):
        path = store.folder(root, own) / RECORDS
        return Rows(list(_first(path, None, count)), f"of {own.name}: before filters and mix", longest)
    said = f"read for this preview, since {own.name} is not finished: before filters and mix"
    return Rows(_straight(own, count), said, longest)


def _max_length(plan: Plan, source: Stage) -> int | None:
    """Return the `max_length` of the sets that take rows of a source, the largest of several."""
    sets = {stage.key for stage in plan.stages if stage.kind.mixes and source.key in _keys(stage)}
    readers = [(stage.params, stage.inputs["data"]) for stage in plan.stages if stage.kind.makes_tokens]
    return max(
        (params.max_length for params, data in readers if isinstance(params, PackParams | TokenizeParams) and data.key in sets),
        default=None,
    )


def _keys(data: Stage) -> set[str]:
    return {parent.key for key, parent in data.inputs.items() if key.startswith("source.")}


def tokenizer(plan: Plan, root: Path) -> PreTrainedTokenizerBase | str:
    """Return the run's tokenizer, or say why it cannot be had here. The hub is not asked."""
    base = plan.stage("base")
    if store.done(store.folder(root, base)):
        return models.load_tokenizer(policy.read(store.folder(root, base)))
    asked = plan.recipe.base
    if not isinstance(asked, Local | Hub):
        return "its tokenizer is trained on the instruction set by stage `base`, which is not finished"
    try:
        where = {"revision": asked.revision} if isinstance(asked, Hub) else {}
        found = AutoTokenizer.from_pretrained(
            asked.path if isinstance(asked, Local) else asked.id,
            local_files_only=True,
            trust_remote_code=False,
            **where,
        )
    except (OSError, ValueError):
        return "the base model's tokenizer is not on this machine"
    if asked.chat_template:
        found.chat_template = Path(asked.chat_template).read_text(encoding="utf-8")
    chat.check_template(found)
    return found


def shown(record: Record, using: PreTrainedTokenizerBase | str, marked: bool, max_length: int | None = None) -> Text:
    """Return a record for the terminal: a heading, and what is read and learnt; `marked` puts the latter in « » too.

    `using` is the tokenizer; where there is none the turns of the assistant are marked, as they stand. With `max_length` a
    row that training drops is told so, and a pair is cut as training cuts it.
    """
    if isinstance(record, Pair):
        return _pair(record, using, marked, max_length)
    talk = record if isinstance(record, Conversation) else to_conversation(record)
    if isinstance(using, str):
        return _text(talk.id, _turns(talk.messages, LEARNT), marked)
    encoded = chat.encode_conversations(using, [talk.messages])[0]
    if not isinstance(encoded, str) and max_length and len(encoded.input_ids) > max_length:
        encoded = f"longer_than_max_length, {len(encoded.input_ids)} of {max_length} tokens"
    if isinstance(encoded, str):
        return Text(f"{talk.id} (dropped when it is made into tokens: {encoded})", style="yellow")
    parts = [(str(using.decode(ids)), LEARNT if learns else READ, learns) for ids, learns in _runs(encoded)]
    return _text(f"{talk.id} ({len(encoded.input_ids)} tokens, {sum(encoded.answer_mask)} learnt)", parts, marked)


def _pair(pair: Pair, using: PreTrainedTokenizerBase | str, marked: bool, max_length: int | None) -> Text:
    sides = (("chosen", pair.chosen, LEARNT), ("rejected", pair.rejected, WORSE))
    if isinstance(using, str):
        texts = [
            _text(f"{pair.id}: {name}", _turns((*pair.prompt, Message("assistant", answer)), style), marked)
            for name, answer, style in sides
        ]
        return Text("\n").join(texts)
    encoded = chat.encode_pairs(using, [pair])[0]
    if not isinstance(encoded, str) and max_length:
        encoded = pair_budget.fit(encoded, max_length)
    if isinstance(encoded, str):
        return Text(f"{pair.id} (dropped when it is made into tokens: {encoded})", style="yellow")
    prompt, texts = str(using.decode(encoded.prompt_ids)), []
    for (name, _, style), ids in zip(sides, (encoded.chosen_ids, encoded.rejected_ids), strict=True):
        heading = f"{pair.id}: {name} ({len(encoded.prompt_ids)} tokens of prompt, {len(ids)} of answer)"
        texts.append(_text(heading, [(prompt, READ, False), (str(using.decode(ids)), style, True)], marked))
    return Text("\n\n").join(texts)


def _turns(messages: tuple[Message, ...], style: str) -> list[tuple[str, str, bool]]:
    """Return turns as (text, style, learnt); of several by the assistant the last in its own style."""
    return [
        (f"[{turn.role}] {turn.content}\n", _ROLES[turn.role] if turn is not messages[-1] else style, turn.role == "assistant")
        for turn in messages
    ]


def _text(heading: str, parts: list[tuple[str, str, bool]], marked: bool) -> Text:
    found = Text()
    found.append(f"{heading}\n", style="bold")
    for text, style, learns in parts:
        found.append(f"«{text}»" if marked and learns else text, style=style)
    return found


def _runs(encoded: chat.Encoded) -> Iterator[tuple[list[int], bool]]:
    """Yield the tokens in runs of equal mask. A character is never cut: answers begin and end at control tokens."""
    ids: list[int] = []
    for place, token in enumerate(encoded.input_ids):
        ids.append(token)
        if place + 1 == len(encoded.input_ids) or encoded.answer_mask[place + 1] != encoded.answer_mask[place]:
            yield ids, encoded.answer_mask[place]
            ids = []


def _first(path: Path, source: str | None, count: int) -> Iterator[Record]:
    """Yield the first rows of a file, of one source or of all."""
    left = count
    for number in range(records.batches_in(path)):
        batch = pq.ParquetFile(path).read_row_group(number, columns=["source"]).column("source").to_pylist()
        if source is not None and source not in batch:
            continue
        _, found = records.read_batch(path, number)
        for name, record in zip(batch, found, strict=True):
            if left and (source is None or name == source):
                left -= 1
                yield record
        if not left:
            return


def _straight(stage: Stage, count: int) -> list[Record]:
    """Read the first rows that fit, and treat them as the source's stage would."""
    params = stage.params
    assert isinstance(params, SourceParams)
    given: dict[str, Any] = params.use.model_dump()
    asset = stage.inputs.get("path")
    given["path"] = str(asset.path) if isinstance(asset, Asset) else None
    given["revision"] = params.revision or given["revision"]
    use = SourceUse.model_validate(given)
    origin = sources.load(use.source)

    def fitting() -> Iterator[Record]:
        for index, row in enumerate(origin.rows(use)):
            try:
                yield origin.convert(row, index, use)
            except sources.RowError:
                continue

    found = list(islice(fitting(), count))
    if not found:
        raise UserError(f"{stage.name}: no row of split {use.split!r} fits; `rounds run` counts the reasons")
    return rewrite.rewritten(found, system_prompt=params.system_prompt, phi=params.phi)
