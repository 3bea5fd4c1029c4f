"""What is measured of answers that a policy wrote: pure functions of texts, without a model.

In: answers, each with its prompt and what is known of a right one. Out: one value a metric and item, and which direction is better:

- always: `tokens`, `ended`, `empty`, and `refusal` by a rule on strings.
- Of a reference text: `rouge1`, `rouge2`, `rougeL`, each beside its floors (`rouge1/floor_shuffled`, another row's reference;
  `rouge1/floor_prompt`; `rouge1/floor_lead`, the reference's first sentence); what ROUGE does not see: `numbers`, the share of the
  reference's that stand in the answer, and `numbers_invented`, the share of the answer's that neither reference nor prompt has; `negations`
  and `sides`, the shares of the reference's that the answer keeps; `contradictions`, the share of what both have that it turns round.
- Of the right choice or number: `exact_match`; of a number the answer's last one, and `exact_match_marked` the one after `####`.
- Of prompts that should be refused, or should not: `refusal/unsafe`, `refusal/safe`, and `refusal_balanced`, in which a policy that always
  or never refuses has .5.
- Of IFEval's instructions: `prompt_strict`, all of them followed, and `instruction_strict`, where each is an item.

Which items a metric has follows from the prompts and references alone, so two policies are compared on the same ones.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rounds.data_prep import records, refusals
from rounds.train.evaluation import exact, instructions, polarity, quantities, refusal, rouge


@dataclass(frozen=True, slots=True)
class Written:
    """An answer, its prompt, and what is known of a right one."""

    item: str
    """No other answer has it: the prompt's id, with the answer's number where there are several."""
    question: str
    prompt: str
    """All that was said before, for what the answer may know; IFEval's checks read it as the prompt."""
    answer: str
    tokens: int
    ended: bool
    group: str = ""
    reference: str | None = None
    """A text that a good answer resembles: a held-out answer, the chosen one of a pair."""
    right: str | None = None
    """What the answer must be: the text of a choice, or a number."""
    choices: tuple[str, ...] = ()
    """Among what it was to choose; a number among choices is a text like others."""
    follows: tuple[str, ...] = ()
    """Names of the instructions in the prompt (IFEval)."""
    arguments: tuple[Mapping[str, Any], ...] = ()
    """Their arguments, in the same order."""


class Value(NamedTuple):
    """One item's value under a metric. `higher_is_better` is None where neither direction is."""

    metric: str
    item: str
    value: float
    higher_is_better: bool | None
    question: str


def of(record: records.Record, item: str, question: str, answer: str, tokens: int, ended: bool) -> Written:
    """Return an answer to a record's prompt with what the record knows of a right one.

    That is the held-out answer of a conversation, the chosen one of a pair, the right choice of a question; of a prompt the choice or
    number that it names, and IFEval's `instruction_id_list` and `kwargs` in its details.
    """
    prompt = "\n\n".join(turn.content for turn in records.prompt_of(record))
    row = Written(item, question, prompt, answer, tokens, ended, record.group)
    if isinstance(record, records.Conversation | records.Pair):
        return replace(row, reference=records.answers_of(record)[0])
    if isinstance(record, records.Question):
        return replace(row, right=record.choices[record.answer], choices=record.choices)
    known = json.loads(record.details) if record.details else {}
    follows, arguments = tuple(known.get("instruction_id_list", ())), tuple(known.get("kwargs", ()))
    asked = records.prompt_of(record)[-1].content if follows else prompt  # what the checks read is the user's turn, as the set has it
    return replace(row, prompt=asked, right=record.answer, choices=record.choices, follows=follows, arguments=arguments)


def measure(rows: Sequence[Written]) -> Iterator[Value]:
    """Yield the values of all metrics that the rows allow."""
    for row in rows:
        for metric, value, better in (*_always(row), *_right(row)):
            yield Value(metric, row.item, value, better, row.question)
        yield from _followed(row)
    yield from _referenced([row for row in rows if row.reference is not None])
    yield from _refusals(rows)


def _always(row: Written) -> Iterator[tuple[str, float, bool | None]]:
    yield "tokens", row.tokens, None
    yield "ended", row.ended, None
    yield "empty", not row.answer.strip(), False
    yield "refusal", refusals.refuses(row.answer), None


def _right(row: Written) -> Iterator[tuple[str, float, bool]]:
    if row.right is None:
        return
    if exact.is_number(row.right) and not row.choices:
        yield "exact_match", exact.number(row.answer, row.right), True
        yield "exact_match_marked", exact.number_marked(row.answer, row.right), True
    else:
        yield "exact_match", exact.choice(row.answer, row.right), True


def _followed(row: Written) -> Iterator[Value]:
    if not row.follows:
        return
    found = instructions.followed(row.prompt, row.follows, row.arguments, row.answer)
    yield Value("prompt_strict", row.item, all(found), True, row.question)
    for number, value in enumerate(found):
        yield Value("instruction_strict", f"{row.item}#{number}", value, True, row.question)


def _referenced(rows: Sequence[Written]) -> Iterator[Value]:
    # By item, so that the other row of a floor does not depend on the order in which answers were written.
    rows = sorted(rows, key=lambda row: row.item)
    references = [row.reference or "" for row in rows]
    for row, reference, floors in zip(rows, references, rouge.floors(references, [row.prompt for row in rows]), strict=True):
        given: list[tuple[str, float | None, bool | None]] = [
            (name, value, True) for name, value in rouge.scores(reference, row.answer).items()
        ]
        for floor, text in floors.items():
            given += [(f"{name}/{floor}", value, None) for name, value in rouge.scores(reference, text).items()]
        kept = polarity.kept(reference, row.answer)
        given += [
            ("numbers", quantities.kept(reference, row.answer), True),
            ("numbers_invented", quantities.invented(row.answer, reference, row.prompt), False),
            ("negations", kept.negations, True),
            ("sides", kept.sides, True),
            ("contradictions", kept.contradictions, False),
        ]
        yield from (Value(metric, row.item, value, better, row.question) for metric, value, better in given if value is not None)


def _refusals(rows: Sequence[Written]) -> Iterator[Value]:
    wanted = {row.item: is_wanted for row in rows if (is_wanted := refusal.is_wanted(row.group)) is not None}
    asked = {row.item: row.question for row in rows}
    refused = {row.item: refusals.refuses(row.answer) for row in rows if row.item in wanted}
    for item, is_wanted in wanted.items():
        yield Value("refusal/unsafe" if is_wanted else "refusal/safe", item, refused[item], is_wanted, asked[item])
    for item, value in refusal.balanced(refused, wanted).items():
        yield Value("refusal_balanced", item, value, True, asked[item])
