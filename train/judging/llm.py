"""A language model behind an OpenAI-compatible endpoint as a judge: a rubric, two answers, both orders, and no reply paid for twice.

In: two answers to each prompt, and a file of the replies that were had before (`train/generation/endpoint.py`). Out: a verdict of each, and
what it cost. A reply that is no verdict is asked for once more, with another seed, and is then missing.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rounds.data_prep.records import Message
from rounds.train.config.judging import Endpoint, Llm
from rounds.train.generation.endpoint import Server
from rounds.train.generation.samples import Sample
from rounds.train.judging import rubric
from rounds.train.judging.verdicts import Verdict

_FORM = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "winner": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["reason", "winner"],
    "additionalProperties": False,
}
_ASKS = 'Reply with one JSON object and nothing else: {"reason": "...", "winner": "A" or "B" or "tie"}'
_VALUES = {"A": 1.0, "B": -1.0, "tie": 0.0}


def compare(
    judge: Llm,
    endpoint: Endpoint,
    instructions: str,
    asked: Sequence[tuple[tuple[Message, ...], Sample, Sample]],
    folder: Path,
    offline: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Verdict], dict[str, Any]]:
    """Compare two answers to each prompt in both orders, in the order given; returns verdicts, and counts of calls and tokens.

    Raises `UserError` for an endpoint that may not be asked, that is gone, or where a limit of the judge ends the work: the replies that
    were had are in `folder`, and another attempt goes on from them.
    """
    texts = [
        rubric.asked(instructions, prompt, one.answer, other.answer)
        for prompt, *both in asked
        for one, other in (both, both[::-1])
    ]  # fmt: skip
    wanted = list(dict.fromkeys(texts))  # one text is asked once
    with Server(judge, endpoint, folder, offline, "judge") as server:
        sides = server.each(wanted, lambda text: _side(judge, server, text), progress)
    shown, swapped = (list(map(sides.__getitem__, texts[place::2])) for place in range(2))
    found = [_verdict(first, second, *each) for (_, first, second), *each in zip(asked, shown, swapped, strict=True)]
    return found, server.counts()


def read_verdict(reply: str) -> float | None:
    """Return what a reply says, 1 for A, -1 for B, 0 for a tie; None for anything but the one JSON object, in a code fence or not."""
    text = reply.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    winner = said.get("winner") if isinstance(said, dict) else None
    return _VALUES.get(winner) if isinstance(winner, str) else None


def _side(judge: Llm, server: Server, text: str) -> float | str:
    """Return the preference for answer A, or why there is none after two attempts."""
    why = ""
    for reply in server.attempts([_request(judge, text, attempt) for attempt in range(2)]):
        if "error" in reply:
            why = "no_reply"
            continue
        value = read_verdict(reply["reply"])
        if value is not None and not reply["cut"]:
            return value
        why = "reply_cut" if reply["cut"] else "reply_is_no_verdict"
    return why


def _request(judge: Llm, text: str, attempt: int) -> dict[str, Any]:
    return {
        "model": judge.model,
        "messages": [{"role": "user", "content": f"{text}\n{_ASKS}"}],
        "temperature": 0.0,
        "seed": attempt,
        "max_tokens": judge.max_new_tokens,
        "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": _FORM, "strict": True}},
    }


def _verdict(first: Sample, second: Sample, shown: float | str, swapped: float | str) -> Verdict:
    forward = None if isinstance(shown, str) else shown
    backward = None if isinstance(swapped, str) else 0.0 - swapped  # A is the second answer here
    reason = next((side for side in (shown, swapped) if isinstance(side, str)), "")
    return Verdict(first.prompt_id, first.number, second.number, forward, backward, reason, first.tokens, second.tokens)
