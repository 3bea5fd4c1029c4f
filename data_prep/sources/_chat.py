"""Turns in the ShareGPT dialect, `{"from": "human", "value": ...}`, as messages.

In: a row's list of turns. Out: checked messages, or `RowError` with the reasons of `rounds.data_prep.turns.messages`.
"""

from collections.abc import Mapping
from typing import Any

from rounds.data_prep.records import Message
from rounds.data_prep.turns import RowError, messages

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def from_sharegpt(value: Any) -> tuple[Message, ...]:
    """Return the turns as messages that end with the assistant."""
    if not isinstance(value, list | tuple):
        raise RowError("messages_not_a_list")
    return messages([_renamed(turn) for turn in value], "assistant")


def _renamed(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    beside = {name: value for name, value in turn.items() if name not in ("from", "value")}
    return {**beside, "role": ROLES.get(str(turn.get("from"))), "content": turn.get("value")}
