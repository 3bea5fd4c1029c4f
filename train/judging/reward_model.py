"""A reward model: a sequence classifier with one label, which reads a prompt with one answer as its own chat template writes them.

In: answers with their prompts. Out: a score of each, in the model's own unit. It does not depend on the batch: rows are padded on the
right whatever the tokenizer says, with the token that the model itself looks for.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import RewardModel
from rounds.train.generation.samples import Sample
from rounds.train.judging import opening, scores
from rounds.train.judging.scores import Score
from rounds.train.tokens import chat, rendering
from rounds.train.tokens.time_limit import OutOfTimeError, time_limit

logger = logging.getLogger(__name__)

_ROW_SECONDS = 60.0
"""A template renders a conversation of a hundred turns in a second: what takes longer does not end."""
CUT = "cut"
"""What is remarked of a score whose input was longer than the judge reads."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A reward model, ready to score."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Longest input in tokens: the judge's `max_length`, or what the model has positions for."""
    batch_size: int


def opened(judge: RewardModel, where: str, machine: Machine) -> Opened:
    """Load a reward model from its folder, that of the stage `reward` that trained it or, at the judge's revision, from the hub.

    Raises `UserError` for a model that has not one label, lacks weights, needs remote code, or has no chat template.
    """
    if judge.revision is None and (Path(where) / "model").is_dir():
        where = str(Path(where) / "model")
    config = opening.config_of(where, judge.revision)
    if config.num_labels != 1:
        raise UserError(
            f"judge {where}: a reward model has one label, and its config.json says {config.num_labels}: take a model whose score is one "
            "number"
        )
    tokenizer = opening.tokenizer_of(where, judge.revision)
    if not tokenizer.chat_template:
        raise UserError(f"judge {where}: its tokenizer has no chat template, so how it was shown answers is not known; take another judge")
    attention = machine.attn_implementation
    model = opening.model_of(
        AutoModelForSequenceClassification, where, judge.revision, config, machine, attn_implementation=attention, trust_remote_code=False
    )
    longest = opening.longest_input(config, judge.max_length)
    if longest < judge.max_length:
        logger.warning("judge %s reads no more than %d tokens: max_length %d is taken as that", where, longest, judge.max_length)
    return Opened(model, tokenizer, longest, machine.eval_batch_size)


def score(
    judge: Opened, asked: Sequence[tuple[tuple[Message, ...], Sample]], progress: Callable[[int], None] = lambda done: None
) -> list[Score]:
    """Score answers to prompts, in the order given. `progress` is told how many are done.

    Missing where the template refuses the conversation or leaves something out of it, where a text has a control token, and where the
    model's number is not finite. A score of an input that was cut at its end has the remark `cut`.
    """
    rows = _encoded(judge.tokenizer, asked)
    values = _values(judge, [row[: judge.max_length] for row in rows if not isinstance(row, str)], progress)
    found = []
    for row, (_, sample) in zip(rows, asked, strict=True):
        if isinstance(row, str):
            found.append(Score(sample.prompt_id, sample.number, None, row))
        else:
            found.append(scores.of(sample.prompt_id, sample.number, next(values), CUT if len(row) > judge.max_length else ""))
    return found


def _encoded(tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[tuple[Message, ...], Sample]]) -> list[list[int] | str]:
    """Return the tokens of each conversation, or why it cannot be shown."""
    control = chat.control_tokens(tokenizer)
    found: list[list[int] | str] = []
    try:
        with time_limit(_ROW_SECONDS) as restart:
            for prompt, sample in asked:
                restart()
                found.append(_row(tokenizer, control, (*prompt, Message("assistant", sample.answer))))
    except OutOfTimeError:
        raise UserError(f"the judge's chat template did not render a conversation within {_ROW_SECONDS:g} s: it does not end") from None
    return found


def _row(tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str], messages: Sequence[Message]) -> list[int] | str:
    if any(control.search(message.content) for message in messages):
        return "control_token_in_text"
    try:
        text = rendering.apply(tokenizer, messages)
    except rendering.TemplateFailure:
        return "template_refuses_conversation"
    if any(message.content.strip() not in text for message in messages):
        return rendering.LOSES
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


@torch.no_grad()
def _values(judge: Opened, rows: Sequence[list[int]], progress: Callable[[int], None]) -> Iterator[float]:
    """Yield the score of each row, in order."""
    values = [0.0] * len(rows)
    pad = _padding(judge.model, rows)
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))  # longest first: memory trouble shows at once
    for start in range(0, len(order), judge.batch_size):
        places = order[start : start + judge.batch_size]
        width = len(rows[places[0]])
        ids = torch.tensor([rows[place] + [pad] * (width - len(rows[place])) for place in places])
        mask = torch.tensor([[1] * len(rows[place]) + [0] * (width - len(rows[place])) for place in places])
        device = next(judge.model.parameters()).device
        logits = judge.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        for place, value in zip(places, logits.float().flatten().tolist(), strict=True):
            values[place] = value
        progress(start + len(places))
    yield from values


def _padding(model: PreTrainedModel, rows: Sequence[list[int]]) -> int:
    """Return what rows are filled up with. A causal model reads its score at the last token that is not this one, so where its config
    names none it is one that no row ends with."""
    config, embedded = model.config.get_text_config(), model.get_input_embeddings()
    assert isinstance(embedded, torch.nn.Embedding)
    words = embedded.num_embeddings
    if not (isinstance(config.pad_token_id, int) and 0 <= config.pad_token_id < words):
        ends = {row[-1] for row in rows}
        config.pad_token_id = next(token for token in range(words) if token not in ends)
    return config.pad_token_id
