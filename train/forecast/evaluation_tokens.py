"""How much an evaluation reads and writes, before it runs: tokens scored in all, and answers that are written token by token.

Sources count as `rounds.train.forecast.row_counts` knows them. lm-eval's own tasks are counted by the sizes of their published test
splits, with every choice of a question as one pass over question and choice. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rounds.train.engine.graph import Stage
from rounds.train.engine.params import AnswersParams, ApiAnswersParams, EvaluateParams, PromptSet
from rounds.train.forecast.row_counts import Size, of_part

QUESTION_TOKENS = 250
"""Tokens of a question with one choice: MedQA's test questions, the longest of these sets, have about 220 with Llama-3's tokenizer;
chat template included."""
_CHOICES = 4
CHOICE_TOKENS = 15
"""Of each further choice, where all are scored after one prompt."""
_PUBLISHED = {
    "pubmedqa": (500, 3), "medmcqa": (4183, 4), "medqa_4options": (1273, 4), "headqa_en": (2742, 4), "mmlu_anatomy": (135, 4),
    "mmlu_clinical_knowledge": (265, 4), "mmlu_college_biology": (144, 4), "mmlu_college_medicine": (173, 4),
    "mmlu_medical_genetics": (100, 4), "mmlu_professional_medicine": (272, 4), "toxigen": (940, 2),
}  # fmt: skip
"""Questions and choices of lm-eval's tasks. Any other is taken as MedQA's size."""
_WRITTEN = 48
"""Tokens that a task of ours that writes its answer may take (recipes/eval_tasks/free_answer.yaml)."""


@dataclass(frozen=True)
class Reading:
    """Tokens that are scored, and answers that are written with the most tokens of one."""

    scored: float
    answers: int
    answer_tokens: int


def of(stage: Stage, known: Mapping[str, Size]) -> Reading:
    """Return how much an `evaluate` stage reads and writes."""
    params, scored, answers, written = stage.params, 0.0, 0, 0
    assert isinstance(params, EvaluateParams)
    sides_of = {name: 2 for name in stage.inputs if name.startswith("preferences.")} | {"conversations": 1}
    heldout = [(_size(stage, name, known), sides) for name, sides in sides_of.items()]
    for task in params.tasks:
        size = _size(stage, f"task.{task.source}", known)
        count, choices = (size.rows, _CHOICES) if size else _PUBLISHED.get(task.task, _PUBLISHED["medqa_4options"])
        count = min(count, task.limit or count)
        if "generate_until" in (task.yaml or ""):
            answers, written = answers + count, _WRITTEN
        else:
            more = CHOICE_TOKENS if task.built_in else QUESTION_TOKENS
            scored += count * (QUESTION_TOKENS + (choices - 1) * more)
    for size, sides in heldout:
        if size:
            scored += size.rows * sides * (size.prompt_tokens + size.answer_tokens)
    return Reading(scored, answers, written)


def written(stage: Stage, known: Mapping[str, Size]) -> list[Reading]:
    """Return for each set of an `answers` stage what is read of prompts, once an answer, and how much is written at most. A set whose
    rows are not known counts by `max_rows`, or not at all."""
    assert isinstance(stage.params, AnswersParams | ApiAnswersParams)
    found = []
    for wanted in stage.params.sets:
        size = _size(stage, f"prompts.{wanted.name}", known)
        most = [n for n in (_rows(stage, wanted, size), wanted.max_rows) if n is not None]
        answers = min(most) * wanted.num_answers if most else 0
        found.append(Reading(answers * (size.prompt_tokens if size else QUESTION_TOKENS), answers, wanted.max_new_tokens))
    return found


def _rows(stage: Stage, wanted: PromptSet, size: Size | None) -> int | None:
    """Return how many prompts a set has; one part of it has as many as each other, as far as is known."""
    return of_part(stage, wanted, size) if size else None


def _size(stage: Stage, name: str, known: Mapping[str, Size]) -> Size | None:
    parent = stage.inputs.get(name)
    return known.get(parent.name) if isinstance(parent, Stage) else None
