"""A policy of the run as a judge: how much likelier it finds "A" than "B" after a rubric and two answers.

In: two answers to each prompt. Out: a verdict of each, from both orders, in nats. Deterministic, without an endpoint, and as biased towards
a place as the policy is: the two orders tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message
from rounds.train.config.cluster import Machine
from rounds.train.engine.policy import Policy
from rounds.train.generation.samples import Sample
from rounds.train.judging import opening, rubric
from rounds.train.judging.verdicts import Verdict
from rounds.train.tokens import chat
from rounds.train.weights import choice_logprobs, models


@dataclass(frozen=True, slots=True)
class Opened:
    """A policy, ready to judge."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    letters: tuple[list[int], list[int]]
    """The tokens of A and of B."""
    max_length: int
    batch_size: int


def opened(policy: Policy, machine: Machine) -> Opened:
    """Load a policy as evaluation does. Raises `UserError` where its tokenizer has no token for A or B."""
    model, tokenizer = models.load_to_score(policy, machine), models.load_tokenizer(policy)
    one, other = (tokenizer.encode(letter, add_special_tokens=False) for letter in "AB")
    if len(one) != 1 or len(other) != 1 or one == other:
        raise UserError(f"judge {policy.weights}: its tokenizer writes A as {one} and B as {other}, expected one token each; take another")
    return Opened(model, tokenizer, (one, other), opening.longest_input(model.config, 10**9) - 1, machine.eval_batch_size)


def compare(
    judge: Opened,
    instructions: str,
    asked: Sequence[tuple[tuple[Message, ...], Sample, Sample]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Verdict]:
    """Compare two answers to each prompt by a rubric, in both orders, in the order given. `progress` is told how many letters are scored.

    Missing where the text is longer than the policy reads (`too_long`), or where its chat template cannot ask it.
    """
    texts = [
        rubric.asked(instructions, prompt, one.answer, other.answer)
        for prompt, *both in asked
        for one, other in (both, both[::-1])
    ]  # fmt: skip
    rows = chat.encode_prompts(judge.tokenizer, [(Message("user", text),) for text in texts])
    rows = ["too_long" if not isinstance(row, str) and len(row) > judge.max_length else row for row in rows]
    questions = [(row, judge.letters) for row in rows if not isinstance(row, str)]
    values = iter(choice_logprobs.score(judge.model, questions, judge.batch_size, progress) if questions else [])
    sides = [row if isinstance(row, str) else next(values) for row in rows]
    return [_verdict(first, second, sides[2 * place], sides[2 * place + 1]) for place, (_, first, second) in enumerate(asked)]


def _verdict(first: Sample, second: Sample, shown: list[float] | str, swapped: list[float] | str) -> Verdict:
    forward = None if isinstance(shown, str) else shown[0] - shown[1]
    backward = None if isinstance(swapped, str) else swapped[1] - swapped[0]  # A is the second answer here
    reason = next((side for side in (shown, swapped) if isinstance(side, str)), "")
    return Verdict(first.prompt_id, first.number, second.number, forward, backward, reason, first.tokens, second.tokens)
