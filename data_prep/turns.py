"""The rules that texts and turns of a raw row must follow, in one place for all sources.

In: values as a file or a dataset gives them, of any type. Out: clean texts and messages, or `RowError` with a stable
reason. A text is kept as it is, but for line ends: `\\r\\n` and `\\r` become `\\n`.
"""

import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from rounds.data_prep.records import Message

Row = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
# C0 controls but tab and newline, DEL, overrides that show a text in another order than it reads, lone surrogates, which
# no UTF-8 file can hold, and code points that are no characters. C1 controls stay: they are quotes and dashes that were
# read as Latin-1, in 28 of MEDEC's 511 texts, and filter `quality` counts them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202d\u202e\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# The same of ASCII, as bytes: to leave them out of a text is some ten times as fast as to look for them.
_FORBIDDEN_BYTES = bytes(code for code in range(128) if _FORBIDDEN.match(chr(code)))
# Anything but white space and characters without width, of which a text may consist and yet say nothing.
_VISIBLE = re.compile("[^\\s\xad\u200b-\u200f\u2060\ufeff]")
# Where a picture or a sound stood that no text model is shown.
_MEDIA = re.compile(r"<\|?(image|video|audio)(?:_?\d+|_pad)?\|?>")
_WEIGHTS = ("weight", "loss_weight", "train", "training", "learn", "loss", "loss_scale")
"""What sets call the mark of an answer that is not to be learnt: OpenAI's and Axolotl's, ms-swift's, and plain words."""
_ROW_WEIGHTS = ("weight", "loss_weight", "train", "training")
_PARTLY = ("train_detail", "training_detail")
"""Axolotl's list of the parts of an answer that are learnt."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts", "thought")
_THINKING_PARTS = ("thinking", "reasoning")
_BESIDE = {
    **dict.fromkeys(("tool_calls", "function_call"), "calls_a_tool"),
    **dict.fromkeys(("images", "image", "image_url"), "has_images"),
    **dict.fromkeys(("videos", "video"), "has_video"),
    **dict.fromkeys(("audios", "audio"), "has_audio"),
}
"""Fields of a turn whose content no stage can learn, and the reason that they are."""
TURN_FIELDS = frozenset(("role", "content", "from", "value", *_WEIGHTS, *_PARTLY, *_THOUGHTS, *_BESIDE))
"""What is read of a turn, if only to refuse it."""
_NEVER, _ALWAYS = {"0", "0.0", "false", "no", "off"}, {"", "1", "1.0", "true", "yes", "on"}
# Before a prompt and before an answer that a side writes again, both where they are.
_ASKS = re.compile(r"\s*(?:(?:human|user|question|instruction|prompt|q)\s*:\s*)?", re.IGNORECASE)
_ANSWERS = re.compile(r"\s*(?:(?:assistant|ai|gpt|bot|answer|response|a)\s*:\s*)?", re.IGNORECASE)
_LAST_MARK = re.compile(r"\s(?:assistant|ai|gpt|bot|answer|response|a)\s*:\s*$", re.IGNORECASE)
# "Hello!" is a whole prompt, and how its answers begin of themselves: of three words and more nobody begins so by chance.
_REPEATED_WORDS = 3
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"),
           ("chosen_rating", "rejected_rating"), ("rating_chosen", "rating_rejected"))  # fmt: skip
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
    is_clean = value.isascii() and len(value.encode().translate(None, _FORBIDDEN_BYTES)) == len(value)
    if not is_clean and (found := _FORBIDDEN.search(value)):
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

    An empty system turn says nothing and is left out. An answer whose weight is 0 is not `learnt`. A content in parts is its text parts,
    a line each. What an answer says to have been thought before it is its `reasoning`. Raises `RowError`: `messages_not_a_list`,
    `no_messages`, `message_not_an_object`, `unknown_role`, `calls_a_tool`, `has_images`, `has_video`, `has_audio`, `reasoning_not_text`,
    `content_part_<type>`, `weight_is_a_fraction`, `weight_not_0_or_1`, `weight_of_parts`, `answer_of_weight_0` (no answer is learnt; not
    bad), `two_system_messages`, `turns_out_of_order`, `last_turn_not_<last>`, and the reasons of `text` with the name `content`.
    """
    if not isinstance(value, list | tuple):
        raise RowError("messages_not_a_list")
    turns = [turn for turn in map(_message, value) if turn is not None]
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
    if last == "user":
        return _as_prompt(turns)
    if not any(turn.learnt for turn in turns if turn.role == "assistant"):
        raise RowError("answer_of_weight_0", bad=False)
    return tuple(turns)


def refuse_unlearnt(row: Row) -> None:
    """Raise `RowError` for a row that says of itself that it is not to be learnt: `answer_of_weight_0` (not bad); or by a part only, which
    no stage can do: `weight_is_a_fraction`.

    Anything else under these names, such as a patient's weight in kilograms, says nothing of learning.
    """
    for name in _ROW_WEIGHTS:
        if name in row and isinstance(value := row[name], str | int | float):
            kind = _weight(value)
            if kind is False:
                raise RowError("answer_of_weight_0", bad=False)
            if kind == "weight_is_a_fraction":
                raise RowError("weight_is_a_fraction")


def check_scores(row: Row) -> None:
    """Raise `RowError` where a pair's own scores say nothing, or the contrary of its sides: `score_not_a_number`, `tied_scores` (not
    bad), `scores_contradict_sides`. Numbers may be written as text, as all are in CSV."""
    for better, worse in _SCORES:
        if row.get(better) in (None, "") or row.get(worse) in (None, ""):
            continue
        chosen, rejected = _score(row[better]), _score(row[worse])
        if chosen == rejected:
            raise RowError("tied_scores", bad=False)
        if chosen < rejected:
            raise RowError("scores_contradict_sides")


def refuse_media(said: str) -> None:
    """Raise `image_in_text` (`video`, `audio`) where a mark says that one stood in a text; a tag that is closed is code."""
    if "<" in said and (mark := _MEDIA.search(said)) and f"</{mark.group(1)}>" not in said:
        raise RowError(f"{mark.group(1)}_in_text")


def words(content: Any) -> str | None:
    """Return the text of a message's content, in parts or not; None where it is none that `messages` takes."""
    try:
        said = _parts(content)[0] if isinstance(content, list | tuple) else content
    except RowError:
        return None
    return said if isinstance(said, str) else None


def without_reasoning(row: Row) -> Row:
    """Return a row whose turns say nothing of what was thought before an answer; its own columns stay."""
    return {name: _unthought(value) if isinstance(value, list | tuple | Mapping) else value for name, value in row.items()}


def ask(question: str, system: str | None = None) -> tuple[Message, ...]:
    """Return the prompt that asks one clean text, after a system turn where one is given."""
    return (*((Message("system", system),) if system else ()), Message("user", question))


def with_system(turns: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """Return turns with a system turn said first, where they bring none of their own and one is given."""
    return turns if system is None or turns[0].role == "system" else (Message("system", system), *turns)


def preference(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    """Return prompt, chosen and rejected answer of a preference row, by the names of a `Pair`; with what was thought before them.

    `prompt` is a text, a list of messages, or None. Each side is a text, a list with one assistant message, or a whole
    conversation; then its prompt is all turns but the last. A prompt that both sides repeat at their start is cut from them. Raises
    `RowError`: `prompts_differ`, `identical_answers` (not bad), `missing_column_prompt`, `prompt_repeated_in_answers` (where it is not to
    the letter, or so short that the answers may begin so of themselves), and the reasons of `text` and `messages`.
    """
    given = None
    if prompt is not None:
        given = ask(text(prompt, "prompt")) if isinstance(prompt, str) else messages(prompt, "user")
    better_prompt, better = _side(chosen, given, "chosen")
    worse_prompt, worse = _side(rejected, given, "rejected")
    if better_prompt != worse_prompt:
        raise RowError("prompts_differ")
    said = _without_prompt(better_prompt[-1].content, better.content, worse.content)
    if said[0].strip() == said[1].strip() and better.reasoning == worse.reasoning:
        raise RowError("identical_answers", bad=False)
    found = {"prompt": better_prompt, "chosen": said[0], "rejected": said[1]}
    return found | {"chosen_reasoning": better.reasoning, "rejected_reasoning": worse.reasoning}


def says(value: Any) -> bool:
    """Tell whether a field says something: Arrow gives every row the fields that any row has, with a null or nothing in them."""
    if isinstance(value, Mapping):
        return any(map(says, value.values()))
    if isinstance(value, str):
        return bool(value.strip())
    return any(map(says, value)) if isinstance(value, list | tuple) else value not in (None, False)


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


def _message(value: Any, name: str = "content") -> Message | None:
    if not isinstance(value, Mapping):
        raise RowError("message_not_an_object")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise RowError("unknown_role")
    if role == "system" and (content is None or (isinstance(content, str) and not content.strip())):
        return None
    beyond = value if len(value) > 2 else {}  # most turns say nothing more
    # What a turn says beyond its words would be lost.
    for field, reason in _BESIDE.items() if beyond else ():
        if field in beyond and says(beyond[field]):
            raise RowError(reason)
    content, thought = _parts(content) if isinstance(content, list | tuple) else (content, "")
    if role != "assistant":
        return Message(role, text(content, "content"))
    if beyond:
        thought = thought or next((beyond[field] for field in _THOUGHTS if says(beyond.get(field))), "")
    thought = text(thought, "reasoning").strip() if thought else ""
    return Message(role, text(content, name), _is_learnt(beyond) if beyond else True, thought)


def _parts(parts: list[Any] | tuple[Any, ...]) -> tuple[str, str]:
    """Return the text of a content in parts, and what is thought in it."""
    said, thought = [], []
    for part in parts:
        if not isinstance(part, Mapping):
            raise RowError("content_not_text")
        kind = part.get("type") or ("text" if says(part.get("text")) else None)
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            said.append(part["text"])
        elif kind in _THINKING_PARTS and isinstance(words := part.get(kind) or part.get("text"), str):
            thought.append(words)
        else:
            name = re.sub(r"\W+", "_", kind)[:40] if isinstance(kind, str) else "unknown"
            raise RowError(f"content_part_{name or 'unknown'}")
    return "\n".join(said), "\n".join(thought)


def _unthought(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_unthought(each) for each in value if not (isinstance(each, Mapping) and each.get("type") in _THINKING_PARTS)]
    if isinstance(value, Mapping):
        return {name: _unthought(each) for name, each in value.items() if name not in _THOUGHTS}
    return value


def _is_learnt(turn: Row) -> bool:
    if any(says(turn.get(name)) for name in _PARTLY):
        raise RowError("weight_of_parts")
    learnt = True
    for name in _WEIGHTS:
        weight = _weight(turn.get(name))
        if isinstance(weight, str):
            raise RowError(weight)
        learnt = learnt and weight
    return learnt


def _weight(value: Any) -> bool | str:
    """Tell whether a weight means that something is learnt, or return the reason why that cannot be told."""
    if value is None:
        return True
    word = str(value).strip().lower()
    if word in _NEVER | _ALWAYS:
        return word in _ALWAYS
    try:
        number = float(word)
    except ValueError:
        return "weight_not_0_or_1"
    if number in (0, 1):
        return bool(number)
    return "weight_is_a_fraction" if 0 < number < 1 else "weight_not_0_or_1"


def _score(value: Any) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
            raise ValueError
        score = float(value)
    except (ValueError, OverflowError):
        raise RowError("score_not_a_number") from None
    if not math.isfinite(score):
        raise RowError("score_not_a_number")
    return score


def _as_prompt(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Return turns as a prompt: of what is only read nothing is learnt anyway."""
    return tuple(turn if turn.learnt else replace(turn, learnt=True) for turn in turns)


def _side(side: Any, given: tuple[Message, ...] | None, name: str) -> tuple[tuple[Message, ...], Message]:
    if isinstance(side, list | tuple):
        only = side[0] if len(side) == 1 else None
        if not (isinstance(only, Mapping) and only.get("role") == "assistant"):
            whole = messages(side, "assistant")
            prompt = _as_prompt(whole[:-1])
            # A prompt given as one text is compared with the last question: some sets keep no more than that.
            if given is not None and given != prompt and given != prompt[-1:]:
                raise RowError("prompts_differ")
            return prompt, _answer(whole[-1])
        turn = _message(only, name)
        assert turn
        answer = _answer(turn)
    else:
        answer = Message("assistant", text(side, name))
    if given is None:
        raise RowError("missing_column_prompt")
    return given, answer


def _answer(turn: Message) -> Message:
    """Return a side's answer, which is learnt as a whole or not at all."""
    if not turn.learnt:
        raise RowError("answer_of_weight_0", bad=False)
    return turn


def _without_prompt(prompt: str, *sides: str) -> tuple[str, ...]:
    """Cut a prompt from the start of the sides where all of them repeat it."""
    asked = _LAST_MARK.sub("", _ASKS.sub("", prompt, count=1)).strip()
    said = [_ASKS.sub("", side, count=1) for side in sides]
    if not all(_begins(side, asked) for side in said):
        return sides
    rests = tuple(_ANSWERS.sub("", side[len(asked) :], count=1) for side in said if side.startswith(asked))
    is_short = len(asked.split()) < _REPEATED_WORDS
    if len(rests) < len(sides) or not all(rests) or is_short:
        raise RowError("prompt_repeated_in_answers", bad=not is_short)
    return rests


def _begins(side: str, prompt: str) -> bool:
    """Tell whether a side repeats a prompt at its start, or nearly so, and goes on with another word."""
    asked = normalised(prompt)
    words = normalised(side[: 2 * len(prompt) + 100])  # what stands behind says nothing of the start
    return bool(asked) and words.startswith(asked) and not (words[len(asked) : len(asked) + 1] + asked[-1:]).isalnum()
