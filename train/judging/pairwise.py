"""PairRM (Jiang et al., ACL 2023, arXiv 2306.02561): an encoder that reads a prompt and two answers at once and says which is better.

In: two answers to each prompt. Out: a verdict of each, from both orders. The model is a DeBERTa-v2 with a head of two layers over the
encodings of the marks before prompt and answers, as the published `llm-blender/PairRM-hf` keeps it; its own package is not needed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DebertaV2Config, DebertaV2Model, PreTrainedTokenizerBase
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import Pairwise
from rounds.train.generation.samples import Sample
from rounds.train.judging import opening
from rounds.train.judging.verdicts import Verdict
from rounds.train.tokens import chat

PROMPT_TOKENS, ALL_TOKENS = 1224, 2048
"""As it was trained: the prompt's part, and prompt with both answers, which share evenly what the prompt leaves: 412 tokens at least."""
CUT = "cut"
"""What is remarked of a verdict for which the prompt or an answer was longer than the judge reads."""
_MARKS = {"source_prefix_id": "<|source|>", "cand1_prefix_id": "<|candidate1|>", "cand2_prefix_id": "<|candidate2|>"}


class PairRanker(DebertaV2PreTrainedModel):
    """The published layout: `pretrained_model.*` and `head_layer.1`, `head_layer.4`."""

    base_model_prefix = "pretrained_model"

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = torch.nn.Sequential(  # dropouts are there for the names of the others
            torch.nn.Dropout(0.0),
            torch.nn.Linear(2 * width, width),
            torch.nn.Tanh(),
            torch.nn.Dropout(0.0),
            torch.nn.Linear(width, getattr(config, "n_tasks", 1)),
        )
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        """Return how much the first answer is preferred, in each row. `marks` are the places of the three marks, in rows."""
        encoded = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(encoded), device=encoded.device)
        prompt, first, second = (encoded[rows, marks[:, place]] for place in range(3))
        sides = [self.head_layer(torch.cat([prompt, answer], dim=-1)) for answer in (first, second)]
        return (sides[0] - sides[1]).mean(dim=-1)


@dataclass(frozen=True, slots=True)
class Opened:
    """A ranker, ready to compare."""

    model: PairRanker
    tokenizer: PreTrainedTokenizerBase
    batch_size: int


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    marks: tuple[int, int, int]
    cut: bool


def opened(judge: Pairwise, where: str, machine: Machine) -> Opened:
    """Load a ranker from a folder or, at the judge's revision, from the hub. Raises `UserError` for what is not PairRM's architecture."""
    config = opening.config_of(where, judge.revision)
    if not isinstance(config, DebertaV2Config) or any(not isinstance(getattr(config, name, None), int) for name in _MARKS):
        raise UserError(
            f"judge {where}: expected PairRM's architecture, a deberta-v2 with {', '.join(_MARKS)} in its config.json, found "
            f"{config.model_type}: take llm-blender/PairRM-hf or a model of its kind"
        )
    tokenizer = opening.tokenizer_of(where, judge.revision)
    for name, mark in _MARKS.items():
        if (token := _token(tokenizer, mark)) != getattr(config, name):
            raise UserError(
                f"judge {where}: its tokenizer has {token} for {mark}, and its config.json says {name}: "
                f"{getattr(config, name)}; take both from one place"
            )
    model = opening.model_of(PairRanker, where, judge.revision, config, machine)
    assert isinstance(model, PairRanker)
    return Opened(model, tokenizer, machine.eval_batch_size)


def compare(
    judge: Opened,
    asked: Sequence[tuple[tuple[Message, ...], Sample, Sample]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Verdict]:
    """Compare two answers to each prompt in both orders, in the order given. `progress` is told how many orders are done.

    Missing where a text has a control token. A verdict for which a text was cut at its end has the remark `cut`.
    """
    rows = [_row(judge.tokenizer, prompt, *sides) for prompt, *both in asked for sides in (both, both[::-1])]
    values = iter(_values(judge, [row for row in rows if row is not None], progress))
    found = []
    for place, (_, first, second) in enumerate(asked):
        forward, backward = rows[2 * place : 2 * place + 2]
        told = {"first_tokens": first.tokens, "second_tokens": second.tokens}
        if forward is None or backward is None:  # the same texts: both or neither
            found.append(Verdict(first.prompt_id, first.number, second.number, None, None, "control_token_in_text", **told))
        else:
            preferred, swapped = next(values), -next(values)
            reason = CUT if forward.cut or backward.cut else ""
            found.append(Verdict(first.prompt_id, first.number, second.number, preferred, swapped, reason, **told))
    return found


def _row(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], first: Sample, second: Sample) -> _Row | None:
    """Return the tokens of a prompt and two answers, each with its mark; None where a text would write a mark itself.

    Of a prompt of one turn the judge reads that turn, as it was trained; of more, the turns one under the other, each with its role.
    """
    asked = prompt[0].content if len(prompt) == 1 else "\n".join(f"{turn.role.upper()}: {turn.content}" for turn in prompt)
    control = chat.control_tokens(tokenizer)
    if any(control.search(text) or any(mark in text for mark in _MARKS.values()) for text in (asked, first.answer, second.answer)):
        return None
    source, was_cut = _part(tokenizer, _MARKS["source_prefix_id"], asked, PROMPT_TOKENS)
    room = (ALL_TOKENS - len(source)) // 2
    one, one_cut = _part(tokenizer, _MARKS["cand1_prefix_id"], first.answer, room)
    other, other_cut = _part(tokenizer, _MARKS["cand2_prefix_id"], second.answer, room)
    ids = [*source, *one, *other]
    prompt_mark, first_mark, second_mark = (ids.index(_token(tokenizer, mark)) for mark in _MARKS.values())
    return _Row(ids, (prompt_mark, first_mark, second_mark), was_cut or one_cut or other_cut)


def _token(tokenizer: PreTrainedTokenizerBase, mark: str) -> int:
    (token,) = tokenizer.convert_tokens_to_ids([mark])  # type: ignore[misc]
    return token


def _part(tokenizer: PreTrainedTokenizerBase, mark: str, text: str, room: int) -> tuple[list[int], bool]:
    """Return a part's tokens, at most so many and with its end, and whether some were cut."""
    ids = tokenizer.encode(mark + text)
    return (ids, False) if len(ids) <= room else ([*ids[: room - 1], ids[-1]], True)


@torch.no_grad()
def _values(judge: Opened, rows: Sequence[_Row], progress: Callable[[int], None]) -> Iterator[float]:
    """Yield how much each row's first answer is preferred, in order."""
    values = [0.0] * len(rows)
    pad, device = judge.model.config.pad_token_id or 0, next(judge.model.parameters()).device
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].ids))  # longest first: memory trouble shows at once
    for start in range(0, len(order), judge.batch_size):
        places = order[start : start + judge.batch_size]
        width = len(rows[places[0]].ids)
        ids = torch.tensor([rows[place].ids + [pad] * (width - len(rows[place].ids)) for place in places], device=device)
        mask = torch.tensor([[1] * len(rows[place].ids) + [0] * (width - len(rows[place].ids)) for place in places], device=device)
        marks = torch.tensor([rows[place].marks for place in places], device=device)
        for place, value in zip(places, judge.model(ids, mask, marks).float().tolist(), strict=True):
            values[place] = value
        progress(start + len(places))
    yield from values
