"""The forms in which people keep turns and pairs, made into those that `rounds.data_prep.turns` checks.

In: values of a row as a file gives them. Out: lists of `{"role", "content", ...}`, everything else of a turn kept as it is. Nothing is
checked here: what has none of the forms comes back unchanged, and is a reason there. Forms:

    ShareGPT            [{"from": "human", "value": "Hot?"}, {"from": "gpt", "value": "Measure it."}]
    a struct of lists   {"role": ["user", "assistant"], "content": ["Hot?", "Measure it."]}, as `datasets` kept sequences of structs
    text of a cell      '[{"role": "user", "content": "Hot?"}]', and as Python writes it, with single quotes
    hh-rlhf             "\\n\\nHuman: Hot?\\n\\nAssistant: Measure it."
    Gemini              [{"role": "user", "parts": [{"text": "Hot?"}]}, {"role": "model", "parts": [{"text": "Measure it."}]}]

and rows that have turns in several columns: TRL's `prompt` and `completion`, Gemini's `systemInstruction` beside `contents`.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from rounds.data_prep.sources._plain import said
from rounds.data_prep.turns import Row, RowError

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""What ShareGPT calls our roles."""
_RENAMED = {"developer": "system", "model": "assistant"}
"""OpenAI's later name, and Gemini's."""
SYSTEM_OF_GEMINI = ("systemInstruction", "system_instruction")
_TOOLS = ("function_call", "tool_call", "observation", "function_response", "tool_response", "tool", "function")
"""Who speaks in a turn of ShareGPT that calls a tool, or is what a tool answers."""
_PYTHON_CHARACTERS = 1 << 20  # a syntax tree takes some hundred times its text; no longer row is taken anyway
_HH = re.compile(r"\n\n(Human|Assistant):[ ]?")
_OURS = {"Human": "user", "Assistant": "assistant"}


def from_text(value: Any) -> Any:
    """Return what a cell says, where it is a text that holds a list or an object: in JSON, or as Python, and so pandas, writes one."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    for read in (json.loads, _from_python):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list | dict) else value
    return value


def _from_python(value: str) -> Any:
    if len(value) > _PYTHON_CHARACTERS:
        raise ValueError("too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of "\\d" in a text it would say at the terminal that this is no escape
        return ast.literal_eval(value)


def turns(value: Any) -> Any:
    """Return a list of turns in our words, from any of the forms."""
    value = from_text(value)
    if isinstance(value, str):
        return _hh(value) or value
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):  # OpenAI's `input`
        value = value["messages"]
    if isinstance(value, Mapping):
        value = [value] if any(isinstance(value.get(name), str) for name in ("role", "from")) else rows_of(value)
    return [_turn(each) for each in value] if isinstance(value, list | tuple) else value


def side(value: Any) -> Any:
    """Return a side or the prompt of a pair: turns where it is some, else the value; a text of hh-rlhf comes as turns."""
    if isinstance(value, str):
        found = from_text(value)
        return turns(found) if _are_turns(found) else (_hh(value) or value)
    return turns(said(value))


def pair(row: Row) -> Row:
    """Return a row of pairs under `prompt`, `chosen`, `rejected`, whoever wrote it.

    OpenAI's form has `input.messages`, `preferred_output`, `non_preferred_output`; LLaMA-Factory's `conversations`, or Alpaca's
    `instruction`, `input` and `history`, with `chosen` and `rejected`, or both as the list `output`. What was made into others is left out.
    """
    given = dict(row)
    both = from_text(given.get("output"))
    if "chosen" not in given and "rejected" not in given and isinstance(both, list) and len(both) == 2:
        given |= {"chosen": both[0], "rejected": both[1]}
        del given["output"]
    if "preferred_output" in given and "chosen" not in given:
        given |= {"chosen": given.pop("preferred_output"), "rejected": given.pop("non_preferred_output", None)}
        given["prompt"] = given.pop("input", None)
    elif "prompt" not in given and "conversations" in given:
        given["prompt"] = given.pop("conversations")
    elif "prompt" not in given and isinstance(given.get("instruction"), str):
        given["prompt"] = alpaca(given, answer=False)
        given = {name: value for name, value in given.items() if name not in ("instruction", "input", "history")}
    return {**given, **{name: side(given[name]) for name in ("prompt", "chosen", "rejected") if name in given}}


def talk(row: Row) -> Row:
    """Return a row of one conversation under `messages`, whoever wrote it. What was made into that is left out.

    TRL's form has `prompt` and `completion`, each turns or a text, of which the completion alone is learnt; Gemini's has `contents` and
    may have `systemInstruction`.
    """
    given = dict(row)
    if "messages" not in given and "prompt" in given and "completion" in given:
        sides = {name: turns(given.pop(name)) for name in ("prompt", "completion")}
        asked, said = ([{"role": role, "content": side}] if isinstance(side, str) else side
                       for role, side in zip(("user", "assistant"), sides.values(), strict=True))  # fmt: skip
        if isinstance(asked, list) and isinstance(said, list):
            given["messages"] = [*map(_read, asked), *said]
    elif "messages" not in given and "contents" in given:
        given["messages"] = given.pop("contents")
    if "messages" in given:
        given["messages"] = turns(given["messages"])
    system = next((given.pop(name) for name in SYSTEM_OF_GEMINI if given.get(name)), None)
    if system is not None and isinstance(given.get("messages"), list):
        said = system if isinstance(system, Mapping) else {"content": system}
        given["messages"] = [_turn({**said, "role": "system"}), *given["messages"]]
    return given


def are_turns(value: Any) -> bool:
    """Tell whether a value is a list of turns, or a text that holds one."""
    return _are_turns(from_text(value))


def _read(turn: Any) -> Any:
    """Return a turn of a prompt, of which no answer is learnt."""
    return {**turn, "weight": 0} if isinstance(turn, Mapping) and turn.get("role") == "assistant" else turn


def instruction(asked: Any, given: Any) -> Any:
    """Return what Alpaca's instruction and input ask together. Raises `RowError`: `input_not_text`."""
    given = said(given)
    if given is not None and not isinstance(given, str):
        raise RowError("input_not_text")
    return "\n\n".join(each for each in (asked, given) if each and each.strip()) or asked


def alpaca(row: Row, answer: bool = True) -> list[dict[str, Any]] | None:
    """Return the turns of an Alpaca row: its history, what it asks, and its output. None where it asks no text.

    Raises `RowError`: `input_not_text`, `history_not_pairs`.
    """
    asked, past = row.get("instruction", 0), from_text(row.get("history")) or []
    asked = "" if asked is None else asked
    if not isinstance(asked, str):
        return None
    if not isinstance(past, list) or not all(isinstance(each, list | tuple) and len(each) == 2 for each in past):
        raise RowError("history_not_pairs")
    talk = [
        *(turn for pair in past for turn in pair),
        instruction(asked, row.get("input")),
        *((said(row.get("output")),) if answer else ()),
    ]
    return [{"role": ("user", "assistant")[place % 2], "content": each} for place, each in enumerate(talk)]


def rows_of(value: Any) -> Any:
    """Return an object of lists of one length, as `datasets` kept a sequence of structs, as a list of objects; all else unchanged."""
    if not isinstance(value, Mapping):
        return value
    columns = {name: list(each) for name, each in value.items() if isinstance(each, list | tuple)}
    if columns and all(name in columns or value[name] is None for name in value) and len({len(each) for each in columns.values()}) == 1:
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return value


def _are_turns(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and bool({"role", "from"} & first.keys())


def _turn(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    turn = dict(value)
    if "content" in turn:
        turn["content"] = said(turn["content"])
    if "content" not in turn and isinstance(turn.get("parts"), list | tuple):
        turn["content"] = [_part(each) for each in turn.pop("parts")]
    if isinstance(role := turn.get("role"), str):
        turn["role"] = _RENAMED.get(role, role)
    if turn.get("role") is not None or not isinstance(speaker := turn.get("from"), str):
        return turn
    turn |= {"role": turn.pop("from"), "content": said(turn.get("content", turn.pop("value", None)))}
    word = speaker.strip().lower()
    # A call of a tool under a role of its own, and what the tool answers, `turns.messages` names as a call.
    return turn | ({"role": "assistant", "tool_calls": [turn["content"]]} if word in _TOOLS else {"role": _ROLES.get(word, speaker)})


def _part(value: Any) -> Any:
    """Return a part of Gemini's with its type: what it holds says what it is."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    if not isinstance(value, Mapping) or "type" in value:
        return value
    if isinstance(value.get("text"), str):
        return {**value, "type": "thinking" if value.get("thought") is True else "text"}
    return {**value, "type": next((str(name) for name in value), "unknown")}


def _hh(value: str) -> list[dict[str, Any]] | None:
    """Return the turns of a text with hh-rlhf's marks; None where it does not begin with one. A mark without an answer ends a prompt."""
    if not value.lstrip().startswith("Human:"):
        return None
    parts = _HH.split(f"\n\n{value.lstrip()}")
    if len(parts) < 5:
        return None
    found = [{"role": _OURS[mark], "content": said.strip()} for mark, said in zip(parts[1::2], parts[2::2], strict=True)]
    return found[:-1] if found[-1] == {"role": "assistant", "content": ""} else found
