"""How many words and word pairs of a reference an answer has (Lin 2004), and what stands there without any skill.

In: texts. Out: F1 of ROUGE-1, -2 and -L by the package `rouge-score`, without stemming, as Hugging Face's `evaluate` and the challenges of
MTS-Dialog and ACI-Bench compute it. ROUGE does not see what matters in a note: one with every number changed, every negation dropped and
every side swapped keeps more than nine tenths of it (tests/train/evaluation/test_written.py), another patient's keeps a third. So floors
stand beside it, and `quantities` and `polarity` look at the rest.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

NAMES = ("rouge1", "rouge2", "rougeL")
_SENTENCE = re.compile(r".*?[.!?](?=\s|$)", re.DOTALL)


def scores(reference: str, answer: str) -> dict[str, float]:
    """Return the F1 of each of `NAMES`; 0 for an answer without a word."""
    return {name: float(score.fmeasure) for name, score in _scorer().score(reference, answer).items()}


def floors(references: Sequence[str], prompts: Sequence[str]) -> list[dict[str, str]]:
    """Return for each row what could be handed in without reading it: another row's reference, the prompt, the reference's first sentence.

    The other reference is the next that differs, so it depends on the order of the rows; there is none where all are one text.
    """
    given = []
    for place, (reference, prompt) in enumerate(zip(references, prompts, strict=True)):
        others = (references[(place + step) % len(references)] for step in range(1, len(references)))
        other = next((each for each in others if each != reference), None)
        given.append({"floor_prompt": prompt, "floor_lead": _lead(reference)} | ({} if other is None else {"floor_shuffled": other}))
    return given


def _lead(text: str) -> str:
    found = _SENTENCE.match(text.strip())
    return found[0] if found else text


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes a second: only where something is measured

    return RougeScorer(list(NAMES), use_stemmer=False)
