"""Messages to tokens, by the tokenizer's own chat template: which tokens the model reads and which it learns.

The whole conversation is rendered to one text and tokenised once, so training sees exactly what
`tokenizer.apply_chat_template` gives. Answer tokens are found by character spans of that text: from the end of the
rendered prompt to the control token that ends the turn. A template whose prompt is no prefix of prompt plus answer, or a
token that straddles the border, is refused per row with a stable reason.

The prompts of most rows are not rendered again to find the spans: a template writes the same around the contents of any
two conversations with the same roles, so what it writes is learnt once for each sequence of roles (`_Frame`). A row
whose text is not that is rendered turn by turn.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from jinja2 import TemplateError
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message, Pair, Role


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised conversation: `answers` are the tokens of each assistant turn, from a place up to another."""

    input_ids: list[int]
    answers: tuple[tuple[int, int], ...]

    @property
    def answer_mask(self) -> list[bool]:
        """Tell of each token whether it belongs to an assistant turn."""
        mask = [False] * len(self.input_ids)
        for start, end in self.answers:
            mask[start:end] = [True] * (end - start)
        return mask


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A tokenised pair; the prompt's tokens are a true prefix of both prompt + chosen and prompt + rejected."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def check_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the control token that ends an assistant turn, at which generation must stop.

    Raises `UserError` when there is no chat template, or when it ends answers without a control token: a model trained
    so would never learn to stop.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template: set base.chat_template to a Jinja file, for example chat_templates/llama3.jinja"
        )
    probe = (Message("user", "Is it so?"), Message("assistant", "It is."))
    try:
        text, spans = _render(tokenizer, probe)
        asked = tokenizer.apply_chat_template(_dicts(probe[:1]), tokenize=False)
        opens_answer = asked != tokenizer.apply_chat_template(_dicts(probe[:1]), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(f"the chat template cannot render a plain question and answer: {error}") from None
    if not spans:
        raise UserError(
            "the chat template renders a prompt differently once it is answered, so a model would be trained on "
            "another text than it is asked with: use a template whose prompt is a prefix of prompt and answer"
        )
    if not opens_answer:
        raise UserError(
            "the chat template ignores add_generation_prompt: the model would be trained to write the assistant's "
            "header, and asked without it. Add the header where add_generation_prompt is set"
        )
    end = _turn_end(tokenizer, text, *spans[-1])
    if end is None:
        raise UserError(
            f"the chat template ends an assistant turn with {text[spans[-1][0] :]!r}, without one of the tokenizer's "
            f"control tokens {tokenizer.all_special_tokens[:8]}: the model would never learn to stop"
        )
    (encoded,) = _encode(tokenizer, [text], [[(spans[-1][0], end)]])
    if isinstance(encoded, str):
        raise UserError(f"the chat template cannot be used for training: {encoded}")
    stop = encoded.input_ids[encoded.answers[-1][1] - 1]
    return str(tokenizer.convert_ids_to_tokens(stop))


@functools.lru_cache(maxsize=4)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Match any control token of the tokenizer, the unnamed ones too: Llama 3 has 253 beside those it names by role."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    longest_first = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[tuple[Message, ...]]) -> list[Encoded | str]:
    """Tokenise conversations in one batch. A string in place of a result is the reason why a row cannot be used."""
    results: list[Encoded | str] = [""] * len(conversations)
    texts, spans, places = [], [], []
    for place, messages in enumerate(conversations):
        rendered = _checked_render(tokenizer, messages)
        if isinstance(rendered, str):
            results[place] = rendered
        else:
            texts.append(rendered[0])
            spans.append(rendered[1])
            places.append(place)
    for place, found in zip(places, _encode(tokenizer, texts, spans) if texts else (), strict=True):
        results[place] = found
    return results


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> str:
    """Render a prompt up to where the assistant starts to answer."""
    return str(tokenizer.apply_chat_template(_dicts(messages), tokenize=False, add_generation_prompt=True))


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[EncodedPair | str]:
    """Tokenise pairs in one batch. A string in place of a result is the reason why a pair cannot be used."""
    sides = [(*pair.prompt, Message("assistant", answer)) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    encoded = encode_conversations(tokenizer, sides)
    return [_pair(chosen, rejected) for chosen, rejected in zip(encoded[::2], encoded[1::2], strict=True)]


def _pair(chosen: Encoded | str, rejected: Encoded | str) -> EncodedPair | str:
    if isinstance(chosen, str) or isinstance(rejected, str):
        return chosen if isinstance(chosen, str) else str(rejected)
    (prompt, chosen_ids), (same_prompt, rejected_ids) = _split(chosen), _split(rejected)
    return EncodedPair(prompt, chosen_ids, rejected_ids) if prompt == same_prompt else "prompt_differs_between_sides"


def _split(encoded: Encoded) -> tuple[list[int], list[int]]:
    """Split before the last answer; tokens after the control token that ends it are left out."""
    start, end = encoded.answers[-1]
    return encoded.input_ids[:start], encoded.input_ids[start:end]


def _checked_render(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]):
    control = control_tokens(tokenizer)
    if any(control.search(message.content) for message in messages):
        return "control_token_in_text"
    try:
        text, spans = _render_fast(tokenizer, messages)
    except TemplateError:
        return "template_refuses_conversation"
    if not spans:
        return "template_prompt_is_no_prefix"
    ends = [_turn_end(tokenizer, text, *span) for span in spans]
    if None in ends:
        return "answer_without_end_token"
    return text, [(start, end) for (start, _), end in zip(spans, ends, strict=True)]


def _render(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation, and find the characters of each assistant turn; no spans where prefixes do not fit."""
    dicts = _dicts(messages)
    text = str(tokenizer.apply_chat_template(dicts, tokenize=False))
    spans = []
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = str(tokenizer.apply_chat_template(dicts[:place], tokenize=False, add_generation_prompt=True))
        last = place + 1 == len(messages)
        through = text if last else str(tokenizer.apply_chat_template(dicts[: place + 1], tokenize=False))
        if not (through.startswith(before) and text.startswith(through)):
            return text, []
        spans.append((len(before), len(through)))
    return text, spans


@dataclass(frozen=True)
class _Frame:
    """What a template writes around the contents of a conversation with certain roles.

    `pieces` stand before each content and after the last. `trims` says which contents lose white space at their ends.
    `answers` are the assistant turns: the turn's place, and how far from its content's start and end its span reaches.
    """

    pieces: tuple[str, ...]
    trims: tuple[bool, ...]
    answers: tuple[tuple[int, int, int], ...]

    def spans(self, messages: tuple[Message, ...], text: str) -> list[tuple[int, int]] | None:
        """Return the answers' spans in a rendered text, or None where this frame did not write it."""
        contents = [each.content.strip() if trims else each.content for each, trims in zip(messages, self.trims, strict=True)]
        written = [part for pair in zip(self.pieces, contents, strict=False) for part in pair]
        if text != "".join((*written, self.pieces[-1])):
            return None
        ends = list(accumulate(map(len, written)))
        return [(ends[2 * place] + low, ends[2 * place + 1] + high) for place, low, high in self.answers]


@functools.lru_cache(maxsize=1024)
def _frame(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[Role, ...]) -> _Frame | None:
    """Learn a frame from a conversation of marks, rendered turn by turn; None where they do not come out in order."""
    marks = [f"Mark{place}of{len(roles)}." for place in range(len(roles))]
    given = [f"\t\t{mark}\t\t" for mark in marks]
    try:
        text, spans = _render(tokenizer, tuple(map(Message, roles, given)))
    except TemplateError:
        return None
    trims = tuple(each not in text for each in given)
    found = [mark if trimmed else each for mark, each, trimmed in zip(marks, given, trims, strict=True)]
    starts = [text.find(each) for each in found]
    if not spans or -1 in starts or starts != sorted(starts) or any(text.count(mark) != 1 for mark in marks):
        return None
    ends = [start + len(each) for start, each in zip(starts, found, strict=True)]
    pieces = tuple(text[end:start] for end, start in zip([0, *ends], [*starts, len(text)], strict=True))
    answered = [place for place, role in enumerate(roles) if role == "assistant"]
    answers = [(at, low - starts[at], high - ends[at]) for at, (low, high) in zip(answered, spans, strict=True)]
    return _Frame(pieces, trims, tuple(answers))


def _render_fast(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> tuple[str, list[tuple[int, int]]]:
    """Do what `_render` does, with one rendering where a frame is known for these roles."""
    frame = _frame(tokenizer, str(tokenizer.chat_template), tuple(message.role for message in messages))
    text = str(tokenizer.apply_chat_template(_dicts(messages), tokenize=False)) if frame else ""
    spans = frame.spans(messages, text) if frame else None
    return _render(tokenizer, messages) if spans is None else (text, spans)


def _turn_end(tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int) -> int | None:
    """Find where the last control token of a turn ends; ChatML, for one, adds a newline after it that is no answer."""
    ends = [match.end() for match in control_tokens(tokenizer).finditer(text, start, end)]
    return max(ends, default=None)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], spans: list[list[tuple[int, int]]]) -> list[Encoded | str]:
    batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    assert batch.encodings
    found = [
        _tokens_of(encoding, each) or _tokens_of_slowly(encoding.offsets, each)
        for encoding, each in zip(batch.encodings, spans, strict=True)
    ]
    return [each if isinstance(each, str) else Encoded(ids, each) for ids, each in zip(batch["input_ids"], found, strict=True)]


def _tokens_of(encoding: Encoding, spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...] | None:
    """Find the tokens of each span by its first and last character; None where they do not end just there."""
    found = []
    for start, end in spans:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None or last is None:
            return None
        inside = (encoding.token_to_chars(first) or (-1, -1))[0] == start
        inside = inside and (encoding.token_to_chars(last) or (-1, -1))[1] == end
        before = encoding.token_to_chars(first - 1) if first else None
        after = encoding.token_to_chars(last + 1) if last + 1 < len(encoding) else None
        if not inside or (before and (before[1] > start or before[0] == start)) or (after and after[0] < end):
            return None
        found.append((first, last + 1))
    return tuple(found)


def _tokens_of_slowly(offsets: Sequence[tuple[int, int]], spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...] | str:
    """Find the tokens inside each span (both in reading order); a token across a border spoils the row."""
    inside: list[list[int]] = [[] for _ in spans]
    place = 0
    for index, (start, end) in enumerate(offsets):
        while place < len(spans) and start >= spans[place][1]:
            place += 1
        if place == len(spans):
            break
        if start >= spans[place][0] and end <= spans[place][1]:
            inside[place].append(index)
        elif end > spans[place][0]:
            return "token_across_answer_border"
    return tuple((tokens[0], tokens[-1] + 1) for tokens in inside if tokens)


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
