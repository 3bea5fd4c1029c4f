"""Rows as a model will read them, with what it learns from marked: for `rounds data preview`.

In: records that `first_rows` found. Out: texts for a terminal.
"""

from collections.abc import Iterator
from pathlib import Path

from rich.text import Text
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rounds.data_prep.records import Conversation, Message, Pair, Prompt, Record
from rounds.data_prep.render import to_conversation
from rounds.train.config.recipe import Hub, Local
from rounds.train.engine import policy, store
from rounds.train.plan.pipeline import Plan
from rounds.train.tokens import chat, pair_budget, template_date
from rounds.train.weights import models

LEARNT, READ, WORSE = "bold green", "dim", "red"
_ROLES = {"system": "magenta", "user": "cyan", "assistant": LEARNT}


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
    template_date.pin(found, asked.template_date)
    chat.check_template(found)
    return found


def shown(record: Record, using: PreTrainedTokenizerBase | str, marked: bool, max_length: int | None = None) -> Text:
    """Return a record for the terminal: a heading, and what is read and learnt; `marked` puts the latter in « » too.

    `using` is the tokenizer; where there is none the turns of the assistant are marked, as they stand. With `max_length` a
    row that training drops is told so, and a pair is cut as training cuts it.
    """
    if isinstance(record, Pair):
        return _pair(record, using, marked, max_length)
    if isinstance(record, Prompt):
        right = [(f"(right: {record.answer})\n", READ, False)] if record.answer else []
        return _text(record.id, [*_turns(record.prompt, READ), *right], marked)
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
    sides = (
        ("chosen", Message("assistant", pair.chosen, reasoning=pair.chosen_reasoning), LEARNT),
        ("rejected", Message("assistant", pair.rejected, reasoning=pair.rejected_reasoning), WORSE),
    )
    if isinstance(using, str):
        texts = [_text(f"{pair.id}: {name}", _turns((*pair.prompt, answer), style), marked) for name, answer, style in sides]
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
    found = []
    for turn in messages:
        learns = turn.role == "assistant" and turn.learnt
        thought = f"(thought: {turn.reasoning}) " if turn.reasoning else ""
        shade = style if turn is messages[-1] else _ROLES[turn.role]
        found.append((f"[{turn.role}] {thought}{turn.content}\n", shade if learns or turn.role != "assistant" else READ, learns))
    return found


def _text(heading: str, parts: list[tuple[str, str, bool]], marked: bool) -> Text:
    found = Text()
    found.append(f"{heading}\n", style="bold")
    for text, style, learns in parts:
        found.append(f"«{text}»" if marked and learns else text, style=style)
    return found


def _runs(encoded: chat.Encoded) -> Iterator[tuple[list[int], bool]]:
    """Yield the tokens in runs of equal mask. A character is never cut: answers begin and end at control tokens."""
    ids: list[int] = []
    mask = encoded.answer_mask
    for place, token in enumerate(encoded.input_ids):
        ids.append(token)
        if place + 1 == len(mask) or mask[place + 1] != mask[place]:
            yield ids, mask[place]
            ids = []
