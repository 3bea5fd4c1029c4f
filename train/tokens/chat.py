"""Messages to tokens, by the tokenizer's own chat template: which tokens the model reads and which it learns.

The whole conversation is rendered to one text and tokenised once, so training sees exactly what
`tokenizer.apply_chat_template` gives. Answer tokens are found by character spans of that text (`rendering.py`): from the
end of the rendered prompt to the control token that ends the turn. A token that straddles the border is refused per row
with a stable reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message, Pair
from rounds.train.tokens import rendering
from rounds.train.tokens.memory_limit import memory_limit
from rounds.train.tokens.rendering import TemplateFailure, control_tokens
from rounds.train.tokens.time_limit import OutOfTimeError, time_limit

__all__ = ["Encoded", "EncodedPair", "answers_apart", "check_template", "control_tokens", "encode_conversations", "encode_pairs",
           "encode_prompts", "render_prompt", "render_prompts", "template_limits"]  # fmt: skip
_PROBE_SECONDS, _ROW_SECONDS = 10.0, 60.0
"""A template renders a question in a millisecond, and a conversation of a hundred turns in a second: what takes longer does not end."""
_PROBE_BYTES, _ROW_BYTES = 1 << 30, 1 << 32
"""A question takes some kilobytes, and the longest row that is kept, of a million characters, some megabytes."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised conversation: `answers` are the tokens of each assistant turn that is learnt, from a place up to another.

    `left_out` are the places, among the messages, of answers that were to be learnt and cannot be learnt exactly, since the template
    writes them otherwise once there is more.
    """

    input_ids: list[int]
    answers: tuple[tuple[int, int], ...]
    left_out: tuple[int, ...] = ()

    @property
    def answer_mask(self) -> list[bool]:
        """Tell of each token whether it is learnt."""
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

    Raises `UserError` when there is no chat template, when it does not render, when it leaves out what is said, or when it ends answers
    without a control token: a model trained so would never learn to stop.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template: set base.chat_template to a Jinja file, for example chat_templates/llama3.jinja"
        )
    question, answer = probe = (Message("user", "Is it so?"), Message("assistant", "It is."))
    try:
        with time_limit(_PROBE_SECONDS), memory_limit(_PROBE_BYTES):
            text = rendering.apply(tokenizer, probe)
            prompt, unasked = rendering.apply(tokenizer, probe[:1], asked=True), rendering.apply(tokenizer, probe[:1])
            rendered = rendering.render(tokenizer, probe)
    except OutOfTimeError:
        raise UserError(
            f"the chat template did not render a plain question and answer within {_PROBE_SECONDS:g} s: it loops, or calls itself, without "
            "an end. Mend it, or set base.chat_template to another"
        ) from None
    except TemplateFailure as error:
        raise UserError(f"the chat template cannot render a plain question and answer: {error}") from None
    if question.content not in prompt or answer.content not in text:
        raise UserError(
            f"the chat template leaves out the {'answer' if question.content in prompt else 'question'}: it renders {text[:500]!r}. Set "
            "base.chat_template to one that writes all that is said"
        )
    if not text.startswith(prompt):
        raise UserError(
            "the chat template renders a prompt differently once it is answered, so a model would be trained on "
            "another text than it is asked with: use a template whose prompt is a prefix of prompt and answer"
        )
    header = text[len(prompt) : text.find(answer.content, len(prompt))]
    if prompt == unasked and header.strip():
        raise UserError(
            "the chat template ignores add_generation_prompt: the model would be trained to write the assistant's "
            f"header, {header!r}, and asked without it. Add the header where add_generation_prompt is set"
        )
    if rendered == "answer_without_end_token":
        raise UserError(
            f"the chat template ends an assistant turn with {text[len(prompt) :]!r}, without one of the tokenizer's "
            f"control tokens {tokenizer.all_special_tokens[:8]}: the model would never learn to stop"
        )
    (encoded,) = _encode(tokenizer, [text], [[rendered.answers[1]]]) if not isinstance(rendered, str) else [rendered]
    if isinstance(encoded, str):
        raise UserError(f"the chat template cannot be used for training: {encoded}")
    stop = encoded.input_ids[encoded.answers[-1][1] - 1]
    return str(tokenizer.convert_ids_to_tokens(stop))


def template_limits(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Tell what of a conversation a template that `check_template` passed does not write as it is said; nothing where it writes all.

    For the counts of stage `base`. What it costs is counted row by row where rows are made into tokens.
    """
    question, answer = (Message("user", "Is it so?"), Message("assistant", "It is."))
    text = "Be brief."
    thought = "<think>\nI look it up.\n</think>\n\n"
    further = (Message("user", "Why is it so?"), Message("assistant", "Nobody knows."))
    limits = {}
    try:
        with time_limit(_PROBE_SECONDS), memory_limit(_PROBE_BYTES):
            if problem := _problem(tokenizer, (Message("system", text), question, answer)):
                limits["system turns"] = problem
            talk = _rendered(tokenizer, (question, answer, *further))
            if isinstance(talk, str):
                limits["conversations of several turns"] = _PROBLEMS.get(talk, talk)
            elif len(talk.answers) < 2:
                limits["earlier answers"] = "written otherwise once there is more, and so not learnt"
            if problem := _problem(tokenizer, (question, Message("assistant", f"{thought}It is."))):
                limits["think blocks in answers"] = problem
            if problem := _problem(tokenizer, (question, replace(answer, reasoning="I look it up."))):
                limits["reasoning beside answers"] = problem
    except OutOfTimeError:
        raise UserError(
            f"the chat template did not render short conversations within {_PROBE_SECONDS:g} s: it loops, or calls itself, without an end. "
            "Mend it, or set base.chat_template to another"
        ) from None
    return limits


_PROBLEMS = {rendering.LOSES: "not written; such rows are dropped", "template_refuses_conversation": "refused; such rows are dropped"}


def _problem(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> str | None:
    rendered = _rendered(tokenizer, messages)
    return _PROBLEMS.get(rendered, rendered) if isinstance(rendered, str) else None


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[tuple[Message, ...]], *, last_only: bool = False
) -> list[Encoded | str]:
    """Tokenise conversations in one batch. A string in place of a result is the reason why a row cannot be used.

    With `last_only` no other answer than the last is learnt. Raises `UserError` where the template does not come to an end.
    """
    results: list[Encoded | str] = [""] * len(conversations)
    texts, spans, places, left = [], [], [], []
    messages: tuple[Message, ...] = ()
    try:
        with time_limit(_ROW_SECONDS) as restart, memory_limit(_ROW_BYTES):
            for place, messages in enumerate(conversations):
                restart()
                rendered = _rendered(tokenizer, messages, last_only)
                if isinstance(rendered, str):
                    results[place] = rendered
                    continue
                wanted = {at for at, each in enumerate(messages) if each.role == "assistant" and each.learnt}
                wanted = {len(messages) - 1} if last_only else wanted
                texts.append(rendered.text)
                spans.append([span for at, span in sorted(rendered.answers.items()) if at in wanted])
                left.append(tuple(sorted(wanted - rendered.answers.keys())))
                places.append(place)
    except OutOfTimeError:
        raise UserError(
            f"the chat template did not render a conversation of {len(messages)} turns and {sum(len(each.content) for each in messages)} "
            f"characters within {_ROW_SECONDS:g} s: it loops, or calls itself, without an end"
        ) from None
    found = _encode(tokenizer, texts, spans) if texts else []
    for place, left_out, encoded in zip(places, left, found, strict=True):
        results[place] = encoded if isinstance(encoded, str) else replace(encoded, left_out=left_out)
    return results


def answers_apart(messages: tuple[Message, ...], places: Sequence[int]) -> list[tuple[Message, ...]]:
    """Return the conversation up to each of these answers, of which that answer alone is learnt."""
    unlearnt = tuple(replace(each, learnt=False) if each.role == "assistant" else each for each in messages)
    return [(*unlearnt[:place], messages[place]) for place in places]


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> str:
    """Render a prompt up to where the assistant starts to answer. Raises `UserError` where the template does not."""
    try:
        return rendering.apply(tokenizer, messages, asked=True)
    except TemplateFailure as error:
        raise UserError(f"the chat template cannot render a prompt of {len(messages)} turns: {error}") from None


def render_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[tuple[Message, ...]]) -> list[tuple[str, str | None]]:
    """Render prompts up to where the assistant starts to answer, each with the reason why it cannot be asked, or None.

    Raises `UserError` where the template does not come to an end.
    """
    found: list[tuple[str, str | None]] = []
    try:
        with time_limit(_ROW_SECONDS) as restart:
            for messages in prompts:
                restart()
                try:
                    text = rendering.apply(tokenizer, messages, asked=True)
                except TemplateFailure:
                    found.append(("", "template_refuses_conversation"))
                    continue
                lost = any(message.content.strip() not in text for message in messages)
                found.append((text, rendering.LOSES if lost else None))
    except OutOfTimeError:
        raise UserError(
            f"the chat template did not render a prompt of {sum(len(each.content) for each in prompts[len(found)])} characters within "
            f"{_ROW_SECONDS:g} s: it loops, or calls itself, without an end"
        ) from None
    return found


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[tuple[Message, ...]]) -> list[list[int] | str]:
    """Tokenise prompts up to where the assistant starts to answer, in one batch. A string in place of a result is the reason why a
    prompt cannot be asked. Raises `UserError` where the template does not come to an end."""
    control = control_tokens(tokenizer)
    rendered = [
        (text, "control_token_in_text" if any(control.search(message.content) for message in prompt) else why)
        for prompt, (text, why) in zip(prompts, render_prompts(tokenizer, prompts), strict=True)
    ]
    texts = [text for text, why in rendered if why is None]
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
    tokens = iter(found)
    return [why if why is not None else list(next(tokens)) for _, why in rendered]


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, whole: bool = False) -> list[EncodedPair | str]:
    """Tokenise pairs in one batch. A string in place of a result is the reason why a pair cannot be used.

    An answer's tokens end with the control token that ends its turn or, where the pair is wanted `whole`, with the conversation's last;
    those of a rejected answer that was cut off end with its own last.
    """
    sides = [
        (*pair.prompt, Message("assistant", answer, reasoning=thought))
        for pair in pairs
        for answer, thought in ((pair.chosen, pair.chosen_reasoning), (pair.rejected, pair.rejected_reasoning))
    ]
    encoded = encode_conversations(tokenizer, sides, last_only=True)
    both = zip(pairs, encoded[::2], encoded[1::2], strict=True)
    return [_pair(chosen, rejected, whole, pair.rejected_ending == "cut") for pair, chosen, rejected in both]


def _pair(chosen: Encoded | str, rejected: Encoded | str, whole: bool, is_cut: bool) -> EncodedPair | str:
    if isinstance(chosen, str) or isinstance(rejected, str):
        return chosen if isinstance(chosen, str) else str(rejected)
    (prompt, chosen_ids), (same_prompt, rejected_ids) = _split(chosen, whole), _split(rejected, whole and not is_cut)
    if is_cut:
        rejected_ids = rejected_ids[:-1]  # the control token that would end its turn
    return EncodedPair(prompt, chosen_ids, rejected_ids) if prompt == same_prompt else "prompt_differs_between_sides"


def _split(encoded: Encoded, whole: bool) -> tuple[list[int], list[int]]:
    """Split before the last answer; tokens after the control token that ends it are left out, unless the `whole` is wanted."""
    start, end = encoded.answers[-1]
    return encoded.input_ids[:start], encoded.input_ids[start : None if whole else end]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], last_only: bool = False) -> rendering.Rendered | str:
    control = control_tokens(tokenizer)
    if any(control.search(message.content) or (message.reasoning and control.search(message.reasoning)) for message in messages):
        return "control_token_in_text"
    try:
        return rendering.render(tokenizer, messages, last_only=last_only)
    except TemplateFailure:
        return "template_refuses_conversation"


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
