"""Messages to one text by a chat template, and where in it each answer stands that can be learnt exactly.

An answer can be learnt exactly where the text up to it is what the model is asked with at that turn, and where it is written as the
model would then have to write it. Templates that rewrite what was said before (Qwen3 takes the think block out of all answers but the
last, gpt-oss ends them otherwise) allow that for the last answer only; the others are read and not learnt.

Most rows are rendered once: a template writes the same around the contents of any two conversations with the same roles, so what it
writes is learnt once for each sequence of roles (`_Frame`). A row whose text is not that is rendered turn by turn, and each of its
contents looked for: none may be missing.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from rounds.data_prep.records import Message, Role
from rounds.train.tokens.time_limit import OutOfTimeError

LOSES = "template_loses_content"
_THINK = re.compile(r"</?think>")


class TemplateFailure(Exception):
    """A template does not render a conversation; says why."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation's text, and the characters of the answers that can be learnt exactly, by their place among the messages: from
    the end of the prompt to the end of the control token that ends the turn."""

    text: str
    answers: dict[int, tuple[int, int]]


def apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, asked: bool = False) -> str:
    """Render messages to a text; `asked` adds what the template writes before an answer. Raises `TemplateFailure`.

    A template is a program that somebody else wrote: whatever it raises is told as its failure.
    """
    try:
        return str(tokenizer.apply_chat_template(_dicts(messages), tokenize=False, add_generation_prompt=asked))
    except OutOfTimeError:
        raise
    except RecursionError:
        raise TemplateFailure("it calls itself without an end") from None
    except MemoryError:
        raise TemplateFailure("it takes more and more memory, or writes a text without an end") from None
    except Exception as error:
        if "no loader" in str(error):
            raise TemplateFailure("it includes, imports or extends another file, and a tokenizer has one: write all into it") from None
        raise TemplateFailure(str(error) or type(error).__name__) from None


def render(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], *, last_only: bool = False) -> Rendered | str:
    """Render a conversation, or return the reason why it cannot be used: `template_loses_content`, or that no answer of it can be learnt
    exactly (`template_prompt_is_no_prefix`, `answer_without_end_token`).

    With `last_only` no other answer is looked for. Raises `TemplateFailure`.
    """
    frame = None
    if not any(message.reasoning for message in messages):
        frame = _frame(tokenizer, template_of(tokenizer), tuple(message.role for message in messages))
    if isinstance(frame, str):
        apply(tokenizer, messages)  # a template that refuses such a conversation says so itself
        return frame
    if frame:
        text = apply(tokenizer, messages)
        answers = frame.spans(messages, text)
        if answers is not None:
            rendered, why = Rendered(text, _through_white(tokenizer, text, answers)), frame.why
            return rendered if _some(rendered.answers, messages, last_only) else why
    rendered, why = _turn_by_turn(tokenizer, messages, last_only)
    if _loses(rendered, messages):
        return LOSES
    return rendered if _some(rendered.answers, messages, last_only) else why


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of the template that is used."""
    return str(tokenizer.get_chat_template())


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Match any control token of the tokenizer, the unnamed ones too: Llama 3 has 253 beside those it names by role."""
    return _control(tokenizer)[0]


@functools.lru_cache(maxsize=4)
def _control(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], frozenset[str]]:
    """Return the pattern of all control tokens, and those of them that swallow the white space behind them, as Phi-3.5's do."""
    special = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    longest_first = sorted({*map(str, special), *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"), frozenset(str(token) for token in special if token.rstrip)


def _some(answers: dict[int, tuple[int, int]], messages: Sequence[Message], last_only: bool) -> bool:
    """Tell whether an answer that is wanted is among those that can be learnt; where none is wanted, the last must be there."""
    wanted = {place for place, message in enumerate(messages) if message.role == "assistant" and message.learnt}
    return bool(answers.keys() & ({len(messages) - 1} if last_only or not wanted else wanted))


def _turn_by_turn(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], last_only: bool) -> tuple[Rendered, str]:
    """Render a conversation, and each part of it that the model is asked with; also return why an answer, the last at the latest, is not
    among the found."""
    text, answers, why = apply(tokenizer, messages), {}, ""
    for place, message in enumerate(messages):
        is_last = place + 1 == len(messages)
        if message.role != "assistant" or (last_only and not is_last):
            continue
        try:
            before = apply(tokenizer, messages[:place], asked=True)
            through = text if is_last else apply(tokenizer, messages[: place + 1])
        except TemplateFailure:
            if is_last:
                raise
            continue
        end = _end(tokenizer, through, len(before), messages[: place + 1])
        if not through.startswith(before):
            why = "template_prompt_is_no_prefix"
        elif end is None:
            why = "answer_without_end_token"
        elif text.startswith(through[:end]):
            answers[place] = (len(before), end)
        else:
            why = "template_prompt_is_no_prefix"
    return Rendered(text, _through_white(tokenizer, text, answers)), why


def _end(tokenizer: PreTrainedTokenizerBase, through: str, start: int, messages: tuple[Message, ...]) -> int | None:
    """Return the end of the first control token after the last content in a text that ends with it and what the template writes then.

    What comes after that token is no answer: ChatML adds a newline, others the header of the next turn.
    """
    after = _after(tokenizer, template_of(tokenizer), tuple(message.role for message in messages))
    if after is not None and through.endswith(after):
        content_end = len(through) - len(after)
    else:
        content = _THINK.split(messages[-1].content)[-1].strip()
        content_end = max(start, through.find(content, start) + len(content))
    control = control_tokens(tokenizer).search(through, content_end)
    return control.end() if control else None


@functools.lru_cache(maxsize=1024)
def _after(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[Role, ...]) -> str | None:
    """Return what a template writes after the content of the last turn; None where that is not to be seen."""
    marks, given = _marks(roles)
    try:
        text = apply(tokenizer, tuple(map(Message, roles, given)))
    except TemplateFailure:
        return None
    _, _, after = text.rpartition(given[-1] if given[-1] in text else marks[-1])
    return None if after == text else after


def _through_white(tokenizer: PreTrainedTokenizerBase, text: str, answers: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Add the white space to each span that the token at its end swallows."""
    swallowing = _control(tokenizer)[1]
    if not swallowing:
        return answers
    longer = {}
    for place, (start, end) in answers.items():
        swallows = any(text.endswith(token, start, end) for token in swallowing)
        longer[place] = (start, len(text) - len(text[end:].lstrip()) if swallows else end)
    return longer


def _loses(rendered: Rendered, messages: tuple[Message, ...]) -> bool:
    """Tell whether some content is not in the text, each content in a place of its own.

    White space at the ends may be lost. An answer that is not learnt may lose what stands before its `</think>`: that is how templates
    keep histories short. `<think>` itself may be written otherwise.
    """
    wanted = []
    for place, message in enumerate(messages):
        parts = [message.reasoning, *_THINK.split(message.content)]
        is_history = message.role == "assistant" and place not in rendered.answers
        wanted += [part.strip() for part in (parts[-1:] if is_history else parts)]
    left = rendered.text
    for part in sorted(wanted, key=len, reverse=True):
        if part not in left:
            return True
        left = left.replace(part, "\0", 1) if part else left
    return False


@dataclass(frozen=True)
class _Frame:
    """What a template writes around the contents of a conversation with certain roles.

    `pieces` stand before each content and after the last; `order` says whose content comes when. `trims` says of each message whether its
    content loses white space at its ends. `answers` are the assistant turns that can be learnt exactly: the turn's place, and how far from
    its content's start and end its span reaches. `why` others cannot.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    trims: tuple[bool, ...]
    answers: tuple[tuple[int, int, int], ...]
    why: str

    def spans(self, messages: tuple[Message, ...], text: str) -> dict[int, tuple[int, int]] | None:
        """Return the answers' spans in a rendered text, or None where this frame did not write it."""
        contents = [each.content.strip() if trims else each.content for each, trims in zip(messages, self.trims, strict=True)]
        written = [part for piece, place in zip(self.pieces, self.order, strict=False) for part in (piece, contents[place])]
        if text != "".join((*written, self.pieces[-1])):
            return None
        ends = list(accumulate(map(len, written)))
        at = {place: number for number, place in enumerate(self.order)}
        return {place: (ends[2 * at[place]] + low, ends[2 * at[place] + 1] + high) for place, low, high in self.answers}


@functools.lru_cache(maxsize=1024)
def _frame(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[Role, ...]) -> _Frame | str | None:
    """Learn a frame from a conversation of marks, rendered turn by turn; None where they do not come out once each, and the reason where
    the template leaves some out."""
    marks, given = _marks(roles)
    try:
        rendered, why = _turn_by_turn(tokenizer, tuple(map(Message, roles, given)), last_only=False)
    except TemplateFailure:
        return None
    text = rendered.text
    if any(mark not in text for mark in marks):
        return LOSES
    trims = tuple(each not in text for each in given)
    found = [mark if trimmed else each for mark, each, trimmed in zip(marks, given, trims, strict=True)]
    if any(text.count(mark) != 1 for mark in marks):
        return None
    starts = [text.find(each) for each in found]
    ends = [start + len(each) for start, each in zip(starts, found, strict=True)]
    order = sorted(range(len(roles)), key=starts.__getitem__)
    borders = zip([0, *(ends[place] for place in order)], [*(starts[place] for place in order), len(text)], strict=True)
    pieces = tuple(text[end:start] for end, start in borders)
    answers = [(place, low - starts[place], high - ends[place]) for place, (low, high) in rendered.answers.items()]
    return _Frame(pieces, tuple(order), trims, tuple(answers), why)


def _marks(roles: tuple[Role, ...]) -> tuple[list[str], list[str]]:
    """Return a mark for each turn, and contents that hold them with white space around."""
    marks = [f"Mark{place}of{len(roles)}." for place in range(len(roles))]
    return marks, [f"\t\t{mark}\t\t" for mark in marks]


def _dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"role": message.role, "content": message.content} | ({"reasoning_content": message.reasoning} if message.reasoning else {})
        for message in messages
    ]
