"""The forms in which people keep turns and pairs, made into those that `rounds.data_prep.turns` checks.

In: values of a row as a file gives them. Out: lists of `{"role", "content", ...}`, everything else of a turn kept as it is. Nothing is
checked here: what has none of the forms comes back unchanged, and is a reason there. Forms:

    ShareGPT            [{"from": "human", "value": "Hot?"}, {"from": "gpt", "value": "Measure it."}]
    a struct of lists   {"role": ["user", "assistant"], "content": ["Hot?", "Measure it."]}, as `datasets` kept sequences of structs
    text of a cell      '[{"role": "user", "content": "Hot?"}]'
    hh-rlhf             "\\n\\nHuman: Hot?\\n\\nAssistant: Measure it."
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from rounds.data_prep.sources._plain import said
from rounds.data_prep.turns import Row

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "function_call": "tool_call",
    "observation": "tool",
}
"""Names of roles that other forms have for ours."""
_HH = re.compile(r"\n\n(Human|Assistant):[ ]?")
_OURS = {"Human": "user", "Assistant": "assistant"}


def from_text(value: Any) -> Any:
    """Return what the JSON in a cell says, where the cell is a text that holds a list or an object."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, list | dict) else value
    return value


def turns(value: Any) -> Any:
    """Return a list of turns in our words, from any of the forms but hh-rlhf."""
    value = from_text(value)
    if isinstance(value, Mapping):
        value = _rows_of(value)
    return [_turn(each) for each in value] if isinstance(value, list | tuple) else value


def side(value: Any) -> Any:
    """Return a side or the prompt of a pair: turns where it is some, else the value; a text of hh-rlhf comes as turns."""
    if isinstance(value, str):
        found = from_text(value)
        return turns(found) if _are_turns(found) else (_hh(value) or value)
    return turns(value)


def pair(row: Row) -> Row:
    """Return a row of pairs under `prompt`, `chosen`, `rejected`, whoever wrote it.

    OpenAI's form has `input.messages`, `preferred_output`, `non_preferred_output`; LLaMA-Factory's `conversations` or Alpaca's
    `instruction` and `input`, with `chosen` and `rejected`.
    """
    given = dict(row)
    asked = given.get("input")
    if "preferred_output" in given and "chosen" not in given:
        inner = asked.get("messages") if isinstance(asked, Mapping) else asked
        given |= {"prompt": inner, "chosen": given["preferred_output"], "rejected": given.get("non_preferred_output")}
    elif "prompt" not in given and "conversations" in given:
        given["prompt"] = given["conversations"]
    elif "prompt" not in given and isinstance(given.get("instruction"), str):
        given["prompt"] = instruction(given["instruction"], asked)
    return {**given, **{name: side(given[name]) for name in ("prompt", "chosen", "rejected") if name in given}}


def instruction(asked: str, given: Any) -> str:
    """Return what Alpaca's instruction and input ask together."""
    return f"{asked}\n\n{given}" if isinstance(given, str) and given.strip() else asked


def alpaca(row: Row) -> list[dict[str, Any]] | None:
    """Return the turns of an Alpaca row: its history, what it asks, and its output. None where it asks no text."""
    asked, past = row.get("instruction"), from_text(row.get("history")) or []
    if not isinstance(asked, str):
        return None
    pairs = past if isinstance(past, list) else [past]
    before = [each if isinstance(each, list | tuple) and len(each) == 2 else (None, None) for each in pairs]
    talk = [*(turn for pair in before for turn in pair), instruction(asked, row.get("input")), said(row.get("output"))]
    return [{"role": ("user", "assistant")[place % 2], "content": each} for place, each in enumerate(talk)]


def _rows_of(value: Mapping[str, Any]) -> Any:
    columns = {name: list(each) for name, each in value.items() if isinstance(each, list | tuple)}
    if columns and {"role", "from"} & columns.keys() and len({len(each) for each in columns.values()}) == 1:
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return [value] if {"role", "from"} & value.keys() else value


def _are_turns(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and bool({"role", "from"} & first.keys())


def _turn(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    turn = dict(value)
    if turn.get("role") is None and isinstance(turn.get("from"), str):
        turn |= {"role": turn.pop("from"), "content": turn.get("content", turn.pop("value", None))}
    role = turn.get("role")
    renamed = _ROLES.get(role.strip().lower(), role) if isinstance(role, str) else role
    # A call of a tool under a role of its own is one that `turns.messages` names.
    return turn | ({"role": "assistant", "tool_calls": [turn.get("content")]} if renamed == "tool_call" else {"role": renamed})


def _hh(value: str) -> list[dict[str, Any]] | None:
    """Return the turns of a text with hh-rlhf's marks; None where it does not begin with one. A mark without an answer ends a prompt."""
    if not value.lstrip().startswith("Human:"):
        return None
    parts = _HH.split(f"\n\n{value.lstrip()}")
    if len(parts) < 5:
        return None
    found = [{"role": _OURS[mark], "content": said.strip()} for mark, said in zip(parts[1::2], parts[2::2], strict=True)]
    return found[:-1] if found[-1] == {"role": "assistant", "content": ""} else found
