"""Whether an answer is right, by what is known of the right one: no model, and nothing to be won by sounding well.

In: prompts with what is known of a right answer, and answers. Out: 1 or 0; missing where nothing is known, or where an answer cannot be
read as one choice: an answer that names none, or several, is neither right nor wrong.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rounds.data_prep import records
from rounds.train.config.judging import Verifiable
from rounds.train.evaluation import exact, written
from rounds.train.generation.samples import Sample
from rounds.train.judging.scores import Score

_LETTER = re.compile(r"\(?([A-Z])(?:[.):,]+|\s*$)", re.MULTILINE)
_SAYS = re.compile(r"\b(?:answer|choice|option)(?: is|:)+", re.IGNORECASE)


def score(judge: Verifiable, asked: Iterable[tuple[records.Record, Sample]]) -> list[Score]:
    """Score answers to records that know what is right: questions, prompts with an answer."""
    return [_score(judge.match, record, sample) for record, sample in asked]


def counts(rows: Sequence[Score]) -> dict[str, Any]:
    """Tell how many prompts give no signal: all their answers are right, or all wrong. Prompts without a score are not counted."""
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        if row.score is not None:
            by_prompt.setdefault(row.prompt_id, []).append(row.score)
    right, wrong = sum(all(each) for each in by_prompt.values()), sum(not any(each) for each in by_prompt.values())
    return {
        "prompts": len(by_prompt),
        "all_right_share": round(right / len(by_prompt), 4) if by_prompt else None,
        "all_wrong_share": round(wrong / len(by_prompt), 4) if by_prompt else None,
    }


def named(answer: str, choices: Sequence[str], lettered: bool) -> set[int]:
    """Return the places of the choices that an answer names as its own.

    Its first paragraph is a choice; or what follows the last "answer is", "option:" and the like begins with one; or the answer itself
    does, by its letter. Only where the prompt is `lettered` a letter stands for a choice.
    """
    first = answer.strip().split("\n\n")[0]
    found = {place for place, choice in enumerate(choices) if exact.choice(first, choice)}
    if found:
        return found
    plain = answer.replace("*", "")  # bold
    said = list(_SAYS.finditer(plain))
    if said:
        return _begins(plain[said[-1].end() :].strip(), choices, lettered)
    return _begins(plain.strip(), choices, lettered) if lettered and _LETTER.match(plain.strip()) else set()


def _begins(text: str, choices: Sequence[str], lettered: bool) -> set[int]:
    """Return the choices that a text begins with, by letter, by name or by both, the longest name alone ("iron deficiency", not "iron")."""
    letter = _LETTER.match(text) if lettered else None
    by_letter = {ord(letter[1]) - ord("A")} & set(range(len(choices))) if letter else set()
    rest = text[letter.end() :].strip() if letter and by_letter else text
    told = [place for place, choice in enumerate(choices) if re.match(rf"{re.escape(choice.strip())}(?!\w)", rest, re.IGNORECASE)]
    longest = max((len(choices[place].strip()) for place in told), default=0)
    return by_letter | {place for place in told if len(choices[place].strip()) == longest}


def _score(match: str, record: records.Record, sample: Sample) -> Score:
    known = written.of(record, "", "", sample.answer, sample.tokens, sample.ended)
    if known.right is None:
        return Score(sample.prompt_id, sample.number, None, "no_known_answer")
    if match == "number":
        if not exact.is_number(known.right):
            return Score(sample.prompt_id, sample.number, None, "known_answer_is_no_number")
        return Score(sample.prompt_id, sample.number, float(exact.number(sample.answer, known.right)))
    if match == "exact":
        return Score(sample.prompt_id, sample.number, float(exact.choice(sample.answer, known.right)))
    if known.right not in known.choices:
        return Score(sample.prompt_id, sample.number, None, "known_answer_is_no_choice")
    found = named(sample.answer, known.choices, _lettered(known.prompt, known.choices))
    if len(found) != 1:
        return Score(sample.prompt_id, sample.number, None, "names_several_choices" if found else "names_no_choice")
    return Score(sample.prompt_id, sample.number, float(known.choices[found.pop()] == known.right))


def _lettered(prompt: str, choices: Sequence[str]) -> bool:
    """Tell whether a prompt lists its choices behind letters."""
    return all(
        re.search(rf"(?m)^\s*\(?{chr(ord('A') + place)}[.):]\s*{re.escape(choice.strip())}", prompt) for place, choice in enumerate(choices)
    )
