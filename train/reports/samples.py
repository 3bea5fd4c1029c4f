"""The report's part on answers: what each policy wrote to the same prompts, side by side."""

from collections.abc import Sequence
from typing import Any

from rounds.train.reports.steps import Step

Prompt = tuple[str, str]
"""The name of its set, and its id."""

_SHOWN_PROMPTS, _MORE_PROMPTS, _MAX_CHARACTERS = 4, 20, 1500


def side_by_side(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Choose, of each set, prompts that all were asked, by their place alone: those where a round changed the answer, and others."""
    asked = [step for step in steps if step.answers]
    common = [prompt for prompt in asked[0].answers if all(prompt in step.answers for step in asked)] if asked else []
    return [_of_set(name, [prompt for prompt in common if prompt[0] == name], asked) for name in dict.fromkeys(name for name, _ in common)]


def _of_set(name: str, prompts: Sequence[Prompt], asked: Sequence[Step]) -> dict[str, Any]:
    def moved_by(step: Step, prompt: Prompt) -> bool:
        return step.start is not None and step.answers[prompt].answer != step.start.answers[prompt].answer

    rounds = [step for step in asked if step.stage.kind.is_round and step.start in asked]
    changed = {step.name: [prompt for prompt in prompts if moved_by(step, prompt)] for step in rounds}
    moved = {prompt for those in changed.values() for prompt in those}
    first = _spread([prompt for prompt in prompts if prompt in moved], _SHOWN_PROMPTS)
    first += _spread([prompt for prompt in prompts if prompt not in moved], _SHOWN_PROMPTS + 2 - len(first))
    rest = _spread([prompt for prompt in prompts if prompt not in first], _MORE_PROMPTS)
    texts = asked[0].prompts({*first, *rest})
    return {
        "name": name,
        "prompts": len(prompts),
        "changed": {step.name: (len(changed[step.name]), step.start.name if step.start else "") for step in rounds},
        "first": [_card(prompt, texts[prompt], asked) for prompt in first],
        "rest": [_card(prompt, texts[prompt], asked) for prompt in rest],
    }


def _spread(values: Sequence[Prompt], most: int) -> list[Prompt]:
    """Take at most so many values, evenly spaced."""
    return [values[place * len(values) // most] for place in range(most)] if len(values) > most else list(values)


def _card(prompt: Prompt, text: str, asked: Sequence[Step]) -> dict[str, Any]:
    """Put the answers to one prompt side by side; stages that answer alike share one."""
    found: dict[tuple[str, bool], list[Step]] = {}
    for step in asked:
        sample = step.answers[prompt]
        found.setdefault((sample.answer, sample.ended), []).append(step)
    answers = [{"steps": those, "text": _cut(said), "ended": ended} for (said, ended), those in found.items()]
    return {"prompt": _cut(text), "answers": answers}


def _cut(text: str) -> str:
    left = len(text) - _MAX_CHARACTERS
    return text if left <= 0 else f"{text[:_MAX_CHARACTERS]} […{left:,} more characters]"
