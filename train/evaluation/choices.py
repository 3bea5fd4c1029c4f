"""Closed questions, answered by the likelihood of each choice's whole text under the chat template: task `choice_likelihood`.

Med42-v2 was scored so, and not by the letter A to D. In: questions of a source. Out: one value per item under `acc` (the likeliest choice
is the right one), `acc_norm` (per character) and `acc_bytes` (per byte of UTF-8), which are lm-eval's definitions; `acc/GROUP` for the
groups of the rows; and beside each what is reached without reading the question (`floors`).

What is scored equals lm-eval's: white space at the end of the prompt, which a chat template writes before an answer, counts to the choice.
A control token in a question or a choice, such as <|eot_id|>, would end a turn or open another one. It is asked with a space after its
first character, so that it is read as the text that it is, and counted under its task.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TextIO

from transformers import PreTrainedTokenizerBase

from rounds.data_prep import records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS, Question
from rounds.train.engine.params import Task
from rounds.train.tokens import chat

METRICS = ("acc", "acc_norm", "acc_bytes")
TooLong = Literal["drop", "fail"]
TOO_LONG = "longer_than_max_length"
Score = Callable[[Sequence[tuple[list[int], list[list[int]]]]], list[list[float]]]
"""From prompts with their choices, as tokens, to the log-probability of every choice."""


@dataclass
class Measured:
    """What a task gave: values by metric and item, floors by metric, and questions that were not asked, by reason."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    broken_up: int = 0
    """Control tokens in what was asked."""


@dataclass(frozen=True)
class _Asked:
    """A question as it is asked, and its name among the items."""

    item: str
    question: Question
    tokens: tuple[list[int], list[list[int]]]

    @property
    def length(self) -> int:
        prompt, choices = self.tokens
        return len(prompt) + max(map(len, choices))


def measure(
    task: Task, source: Path, tokenizer: PreTrainedTokenizerBase, window: int, too_long: TooLong, score: Score, log: TextIO
) -> Measured:
    """Ask the first `limit` questions of a source, in an order by hash: a fair sample, and the same for every policy.

    A question that is longer than `window` tokens with one of its choices is left out of everything and counted, or, with `fail`, ends the
    evaluation. Raises `UserError` for that, and where no question is left. `log` takes a line of JSON per question.
    """
    questions = [record for record in records.read_records(source / RECORDS) if isinstance(record, Question)]
    questions.sort(key=lambda record: records.stable_hash("evaluate", record.id))
    questions = questions[: task.limit]
    own_ids = len({question.id for question in questions}) == len(questions)
    found = Measured()
    asked: list[_Asked] = []
    lengths: list[int] = []
    for number, (question, tokens) in enumerate(zip(questions, _encoded(tokenizer, questions, found), strict=True)):
        item = f"{task.name}/{question.id if own_ids else number}"
        reason = tokens if isinstance(tokens, str) else None
        if not isinstance(tokens, str):
            one = _Asked(item, question, tokens)
            if one.length > window:
                lengths.append(one.length)
                reason = TOO_LONG
            else:
                asked.append(one)
        if reason:
            found.dropped[reason] += 1
            log.write(json.dumps({"task": task.name, "doc_id": number, "id": question.id, "dropped": reason}) + "\n")
    refuse_too_long(f"task {task.name!r}", lengths, len(questions), window, too_long)
    if not asked:
        raise none_left(task.name, len(questions), window, found.dropped)
    for each, logprobs in zip(asked, score([each.tokens for each in asked]), strict=True):
        right = _right(each.question, logprobs)
        for metric, value in right.items():
            found.values.setdefault(f"{task.name}/{metric}", {})[each.item] = value
        if each.question.group:
            found.values.setdefault(f"{task.name}/acc/{each.question.group}", {})[each.item] = right["acc"]
        line = {"task": task.name, "id": each.question.id, "target": each.question.answer, "answers": logprobs, **right}
        log.write(json.dumps(line) + "\n")
    every = [each.question for each in asked]
    found.floors = {f"{task.name}/{metric}": floors(every) for metric in METRICS}
    for group in sorted({question.group for question in every if question.group}):
        found.floors[f"{task.name}/acc/{group}"] = floors([question for question in every if question.group == group])
    return found


def floors(questions: Sequence[Question]) -> dict[str, float]:
    """Return what is right without reading a question: by chance, by always naming the position that is right most often, and by naming
    the choice with the most characters (of several the first)."""
    positions = Counter(question.answer for question in questions)
    longest = [max(range(len(q.choices)), key=lambda n, q=q: len(q.choices[n])) == q.answer for q in questions]
    return {
        "chance": sum(1 / len(question.choices) for question in questions) / len(questions),
        "constant": max(positions.values()) / len(questions),
        "longest": sum(longest) / len(questions),
    }


def refuse_too_long(what: str, lengths: Sequence[int], number: int, window: int, too_long: TooLong) -> None:
    """Raise `UserError` where rows of these lengths do not fit and the recipe wants an end then."""
    if lengths and too_long == "fail":
        raise UserError(
            f"{what}: {len(lengths):,} of {number:,} rows are longer than {window:,} tokens, the lesser of evaluate.max_length "
            f"and what the model reads; the longest has {max(lengths):,} with its answer. Raise evaluate.max_length, or set "
            "evaluate.too_long: drop, which leaves them out and counts them"
        )


def none_left(task: str, number: int, window: int, dropped: Counter[str]) -> UserError:
    """Say that nothing of a task can be asked."""
    return UserError(
        f"task {task!r}: none of its {number:,} questions can be asked within {window:,} tokens, the lesser of evaluate.max_length and "
        f"what the model reads; dropped: {dict(dropped)}"
    )


def _right(question: Question, logprobs: Sequence[float]) -> dict[str, float]:
    """Tell under each metric whether the likeliest choice, of several the first, is the right one."""
    lengths = {"acc": [1] * len(logprobs), "acc_norm": list(map(len, question.choices)),
               "acc_bytes": [len(choice.encode()) for choice in question.choices]}  # fmt: skip
    return {
        metric: float(max(range(len(logprobs)), key=lambda n, by=by: logprobs[n] / by[n]) == question.answer)
        for metric, by in lengths.items()
    }


def _encoded(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], found: Measured
) -> Iterator[tuple[list[int], list[list[int]]] | str]:
    """Yield the tokens of each question's prompt and choices, or the reason why it cannot be asked."""
    control = chat.control_tokens(tokenizer)

    def plain(text: str) -> str:
        told, times = control.subn(as_text, text)
        found.broken_up += times
        return told

    asked = [tuple(replace(turn, content=plain(turn.content)) for turn in question.prompt) for question in questions]
    for question, (prompt, reason) in zip(questions, chat.render_prompts(tokenizer, asked), strict=True):
        if reason:
            yield reason
            continue
        if not all(choice.strip() for choice in question.choices):
            yield "empty_choice"
            continue
        texts = [prompt.rstrip(), *(prompt + plain(choice) for choice in question.choices)]
        before, *whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
        choices = [ids[len(before) :] for ids in whole]
        yield (before, choices) if before and all(choices) else "choice_without_tokens"


def as_text(control: re.Match[str]) -> str:
    """Return a control token that was found in a text so that it is read as text."""
    return f"{control.group()[0]} {control.group()[1:]}"
