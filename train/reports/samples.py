"""The report's part on answers: what each policy wrote to the same prompts, side by side."""

from collections.abc import Sequence
from typing import Any

from rounds.train.reports.steps import Step

_SHOWN_PROMPTS, _MORE_PROMPTS, _MAX_CHARACTERS = 4, 20, 1500


def side_by_side(steps: Sequence[Step]) -> dict[str, Any]:
    """Choose prompts that all were asked, by their place alone: those where a round changed the answer, and others."""
    asked = [step for step in steps if step.answers]
    prompts = [prompt for prompt in asked[0].answers if all(prompt in step.answers for step in asked)] if asked else []
    rounds = [step for step in asked if step.stage.kind.is_round and step.start in asked]
    changed = {
        step.name: [p for p in prompts if step.start and step.answers[p]["answer"] != step.start.answers[p]["answer"]] for step in rounds
    }
    moved = {prompt for those in changed.values() for prompt in those}
    first = _spread([prompt for prompt in prompts if prompt in moved], _SHOWN_PROMPTS)
    first += _spread([prompt for prompt in prompts if prompt not in moved], _SHOWN_PROMPTS + 2 - len(first))
    rest = _spread([prompt for prompt in prompts if prompt not in first], _MORE_PROMPTS)
    return {
        "prompts": len(prompts),
        "moved": len(moved),
        "changed": {step.name: (len(changed[step.name]), step.start.name if step.start else "") for step in rounds},
        "first": [_card(prompt, asked) for prompt in first],
        "rest": [_card(prompt, asked) for prompt in rest],
    }


def _spread(values: Sequence[str], most: int) -> list[str]:
    """Take at most so many values, evenly spaced."""
    return [values[place * len(values) // most] for place in range(most)] if len(values) > most else list(values)


def _card(prompt: str, asked: Sequence[Step]) -> dict[str, Any]:
    """Put the answers to one prompt side by side; stages that answer alike share one."""
    found: dict[tuple[str, bool], list[Step]] = {}
    for step in asked:
        line = step.answers[prompt]
        found.setdefault((line["answer"], line["ended"]), []).append(step)
    answers = [{"steps": those, "text": _cut(text), "ended": ended} for (text, ended), those in found.items()]
    return {"prompt": _cut(prompt), "answers": answers}


def _cut(text: str) -> str:
    left = len(text) - _MAX_CHARACTERS
    return text if left <= 0 else f"{text[:_MAX_CHARACTERS]} […{left:,} more characters]"
