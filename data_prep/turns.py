"""The rules that texts and turns of a raw row must follow, in one place for all sources.

In: values as a file or a dataset gives them, of any type. Out: clean texts and messages, or `RowError` with a stable
reason. A text is kept as it is, but for line ends: `\\r\\n` and `\\r` become `\\n`.
"""

import re
import sys
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from rounds.data_prep.records import Message

Row = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
# C0 controls but tab and newline, DEL, overrides that show a text in another order than it reads, lone surrogates, which
# no UTF-8 file can hold, and code points that are no characters. C1 controls stay: they are quotes and dashes that were
# read as Latin-1, in 28 of MEDEC's 511 texts, and filter `quality` counts them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202d\u202e\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# Anything but white space and characters without width, of which a text may consist and yet say nothing.
_VISIBLE = re.compile("[^\\s\xad\u200b-\u200f\u2060\ufeff]")
_MAX_ID_CHARACTERS = 1024  # Every id is kept in memory; the longest that stands for a row is an address.


class RowError(ValueError):
    """One row does not become a record. `str(error)` is a stable reason such as `empty_answer`, never row text.

    `bad=False` says that the row fits its schema but holds nothing to learn from (a pair of equal answers): it is
    dropped and counted, and not held against `max_bad_share`. `row` is its number in its file, from 1, and `file` the
    file's name, where known.
    """

    def __init__(self, reason: str, *, bad: bool = True, row: int | None = None, file: str | None = None) -> None:
        super().__init__(reason)
        self.bad = bad
        self.row = row
        self.file = file


def required(row: Row, column: str) -> Any:
    """Return a column's value; raises `missing_column_<column>` or, for a null, `empty_<column>`."""
    if column not in row:
        raise RowError(f"missing_column_{column}")
    if row[column] is None:
        raise RowError(f"empty_{column}")
    return row[column]


def text(value: Any, name: str) -> str:
    """Return the text; raises `empty_<name>`, `<name>_not_text`, `control_characters` or `not_utf8`."""
    if value is None:
        raise RowError(f"empty_{name}")
    if not isinstance(value, str):
        raise RowError(f"{name}_not_text")
    if "\r" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    if found := _FORBIDDEN.search(value):
        raise RowError("not_utf8" if "\ud800" <= found.group() <= "\udfff" else "control_characters")
    if not _VISIBLE.search(value):
        raise RowError(f"empty_{name}")
    return value


def identity(value: Any, name: str = "id") -> str:
    """Return an id as text: ids may be texts or whole numbers; raises `<name>_too_long` and the reasons of `text`."""
    known = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value, name)
    if len(known) > _MAX_ID_CHARACTERS:
        raise RowError(f"{name}_too_long")
    return known


def messages(value: Any, last: Literal["user", "assistant"]) -> tuple[Message, ...]:
    """Return turns that are an optional system turn, then user and assistant in turn, ending with `last`.

    An empty system turn says nothing and is left out. Raises `RowError`: `messages_not_a_list`, `no_messages`,
    `message_not_an_object`, `unknown_role`, `calls_a_tool`, `answer_of_weight_0`, `two_system_messages`,
    `turns_out_of_order`, `last_turn_not_<last>`, and
    the reasons of `text` with the name `content`.
    """
    if not isinstance(value, list | tuple):
        raise RowError("messages_not_a_list")
    turns = [turn for turn in (_message(each) for each in value) if turn is not None]
    system = [turn for turn in turns if turn.role == "system"]
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if len(system) > 1:
        raise RowError("two_system_messages")
    if not spoken:
        raise RowError("no_messages")
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(spoken)):
        raise RowError("turns_out_of_order")
    if spoken[-1].role != last:
        raise RowError(f"last_turn_not_{last}")
    return tuple(turns)


def ask(question: str, system: str | None = None) -> tuple[Message, ...]:
    """Return the prompt that asks one clean text, after a system turn where one is given."""
    return (*((Message("system", system),) if system else ()), Message("user", question))


def with_system(turns: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """Return turns with a system turn said first, where they bring none of their own and one is given."""
    return turns if system is None or turns[0].role == "system" else (Message("system", system), *turns)


def preference(prompt: Any, chosen: Any, rejected: Any) -> tuple[tuple[Message, ...], str, str]:
    """Return prompt, chosen and rejected answer of a preference row.

    `prompt` is a text, a list of messages, or None. Each side is a text, a list with one assistant message, or a whole
    conversation; then its prompt is all turns but the last. Raises `RowError`: `prompts_differ`, `identical_answers`
    (not bad), `missing_column_prompt`, and the reasons of `text` and `messages`.
    """
    given = None
    if prompt is not None:
        given = ask(text(prompt, "prompt")) if isinstance(prompt, str) else messages(prompt, "user")
    better_prompt, better = _side(chosen, given, "chosen")
    worse_prompt, worse = _side(rejected, given, "rejected")
    if better_prompt != worse_prompt:
        raise RowError("prompts_differ")
    if better.strip() == worse.strip():
        raise RowError("identical_answers", bad=False)
    return better_prompt, better, worse


@cache
def _plain() -> dict[int, str | None]:
    """Return what letters are compared as where that is not themselves: None for those that are not seen."""
    found: dict[int, str | None] = {}
    for letter in map(chr, range(128, sys.maxunicode + 1)):
        # Soft hyphens, zero-width spaces and joiners, marks of direction: what a page or a PDF leaves in a word.
        if unicodedata.category(letter) == "Cf":
            found[ord(letter)] = None
        # Raised and lowered digits and fractions keep their form: 10⁵ is not 105.
        elif (form := unicodedata.decomposition(letter)) and not form.startswith(("<super>", "<sub>", "<fraction>")):
            found[ord(letter)] = unicodedata.normalize("NFKC", letter)
    return found


def folded(value: str) -> str:
    """Return the text in the letters that words are compared by: case folded, and of all that looks alike or is not seen one form.

    One is made of ligatures, full-width letters and composed accents, as NFKC does; raised and lowered digits stay apart.
    """
    if value.isascii():
        return value.casefold()
    return unicodedata.normalize("NFC", value.translate(_plain())).casefold()


def normalised(value: str) -> str:
    """Return the text as two rows are compared by it: `folded`, runs of white space made one space."""
    return " ".join(folded(value).split())


def _message(value: Any) -> Message | None:
    if not isinstance(value, Mapping):
        raise RowError("message_not_an_object")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise RowError("unknown_role")
    if role == "system" and (content is None or (isinstance(content, str) and not content.strip())):
        return None
    # What a turn says beyond its words would be lost: calls of tools, and OpenAI's mark of an answer that is not to be learnt.
    if value.get("tool_calls") or value.get("function_call"):
        raise RowError("calls_a_tool")
    if role == "assistant" and value.get("weight") == 0:
        raise RowError("answer_of_weight_0")
    return Message(role=role, content=text(content, "content"))


def _side(side: Any, given: tuple[Message, ...] | None, name: str) -> tuple[tuple[Message, ...], str]:
    if isinstance(side, list | tuple):
        only = side[0] if len(side) == 1 else None
        if not (isinstance(only, Mapping) and only.get("role") == "assistant"):
            whole = messages(side, "assistant")
            # A prompt given as one text is compared with the last question: some sets keep no more than that.
            if given is not None and given != whole[:-1] and given != whole[-2:-1]:
                raise RowError("prompts_differ")
            return whole[:-1], whole[-1].content
        side = only.get("content")
    answer = text(side, name)
    if given is None:
        raise RowError("missing_column_prompt")
    return given, answer
