"""How much a judge is asked, before it is: answers that it scores, every two of them in both orders, calls and tokens that are paid for.

In: a stage `rank`, and what is known of the samples before it. Out: bounds: of answers that say the same a judge is asked less, and in a
cascade a judge is asked of no prompt that one before it decided. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

from rounds.train.config.judging import Llm, Pairwise
from rounds.train.engine.graph import Stage
from rounds.train.engine.params import AnswersParams, RankParams
from rounds.train.forecast.row_counts import Size

_CHARACTERS_OF_A_TOKEN = 4
"""Of English text; a rubric is some hundred tokens of each call."""


@dataclass(frozen=True)
class Asked:
    """What a judge is asked at most."""

    prompts: int
    answers: int
    orders: int = 0
    """Comparisons, each of the two orders counted; 0 for a judge that scores answers by themselves."""
    calls: int = 0
    """Requests to an endpoint, if none has to be repeated, and not more than its `max_calls`."""
    tokens: float = 0
    """Read and written over those calls, not more than `max_tokens`."""
    cascade: bool = False
    """Only of prompts that the judges before it leave open, which are not known yet."""


def of(stage: Stage, known: Mapping[str, Size]) -> Asked | None:
    """Return how much a `rank` stage asks; None where its prompts are not known."""
    params, sample = stage.params, stage.inputs.get("samples")
    assert isinstance(params, RankParams)
    size = known.get(sample.name) if isinstance(sample, Stage) else None
    if size is None or not (isinstance(sample, Stage) and isinstance(sample.params, AnswersParams)):
        return None
    each = sample.params.sets[0].num_answers
    cascade = any(name.startswith("before.") for name in stage.inputs)
    judge = params.judge
    if not isinstance(judge, Llm | Pairwise):
        return Asked(size.rows, size.rows * each, cascade=cascade)
    orders = 2 * size.rows * comb(each, 2)
    if not (isinstance(judge, Llm) and judge.endpoint):
        return Asked(size.rows, size.rows * each, orders, cascade=cascade)
    read = size.prompt_tokens + 2 * size.answer_tokens + len(judge.rubric) / _CHARACTERS_OF_A_TOKEN
    tokens = min(orders, judge.max_calls) * (read + judge.max_new_tokens)
    return Asked(size.rows, size.rows * each, orders, min(orders, judge.max_calls), min(tokens, judge.max_tokens), cascade)
