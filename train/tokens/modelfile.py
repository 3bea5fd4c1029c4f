"""Ollama's Modelfile for a model folder: the chat template in Go's language, the tokens at which an answer ends, and the default sampling.

A Jinja template is not translated line by line. What it writes between the turns is read off short conversations that it renders,
put into a Go template of one of three shapes, and then compared on longer ones: a template that writes anything else (Qwen3's think
blocks, tools, a date) is refused rather than written nearly right.

    first     Llama 3's headers, ChatML, Phi-3, Gemma 3, Llama 2: a system message comes first, in a turn of its own or in the question's
    last      Mistral: it stands in the last question
    none      Gemma 2: the template refuses one

The beginning of a text, `<s>` and the like, is left to the runtime where the tokenizer writes it itself, and stands in the template where
only that does: ChatML's `<|im_start|>` is the bos of some.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message
from rounds.train.tokens import rendering
from rounds.train.tokens.rendering import TemplateFailure

NAME = "Modelfile"
GGUF = "model.gguf"
"""What the Modelfile begins with: llama.cpp's converter writes it."""

_MARKED = "Be brief, {please}."  # seen in what the template writes, and never said to a model
_SYSTEM = Message("system", _MARKED)
_TALK = (
    Message("user", 'Is it "so"?\nI doubt it.'),
    Message("assistant", "It is: 5 % 'or' <more>."),
    Message("user", "Why\\how?"),
    Message("assistant", "No idea."),
    Message("user", "Then I ask elsewhere."),
)


@dataclass(frozen=True)
class Shape:
    """What a template writes around what is said, without the beginning of the text."""

    head: str
    """Before the first question, where there is no system message."""
    turn: str
    """After a question: what the model goes on from."""
    gap: str
    """Between that and an answer, where it is read as said before: a space, in Llama 2's."""
    back: str
    """From an answer to the next question."""
    system: str
    """first, last, or none."""
    before: str = ""
    """Before the system message; in the shape `last` after the text before the question."""
    after: str = ""
    """From the system message to the question."""

    def render(self, messages: Sequence[Message]) -> str:
        """Write a conversation that ends with a question, as the Go template does."""
        said = next((each.content for each in messages if each.role == "system"), "")
        spoken = [each for each in messages if each.role != "system"]
        text = self.before + said + self.after if said and self.system == "first" else self.head
        for place, each in enumerate(spoken):
            if each.role == "assistant":
                text += self.gap + each.content + self.back
                continue
            if said and self.system == "last" and place == len(spoken) - 1:
                text += self.before + said + self.after
            text += each.content + self.turn
        return text

    def go(self) -> str:
        """Write it in Go's template language; texts are constants, since Go would trim white space around its braces."""
        lines = ["{{- range $i, $_ := .Messages }}", "{{- $last := eq (len (slice $.Messages $i)) 1 }}"]
        question = "{{ .Content }}" + _go(self.turn)
        if self.system == "last":
            question = "{{ if and $last $.System }}" + _go(self.before) + "{{ $.System }}" + _go(self.after) + "{{ end }}" + question
        lines += ['{{- if eq .Role "user" }}' + question]
        lines += ['{{- else if eq .Role "assistant" }}' + _go(self.gap) + "{{ .Content }}{{ if not $last }}" + _go(self.back) + "{{ end }}"]
        head = _go(self.head)
        if self.system == "first":
            system = _go(self.before) + "{{ .System }}" + _go(self.after)
            head = "{{ if .System }}" + system + ("{{ else }}" + head if head else "") + "{{ end }}"
        return head + "\n".join([*lines, "{{- end }}{{- end }}"])


def _go(text: str) -> str:
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def shape(tokenizer: PreTrainedTokenizerBase) -> Shape:
    """Read off what a tokenizer's chat template writes. Raises `UserError` where no shape writes the same."""
    begins = tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    begin = str(tokenizer.bos_token) if begins else ""

    def rendered(*talk: Message) -> str:
        text = rendering.apply(tokenizer, talk, asked=True)
        return text.removeprefix(begin) if begin else text

    question, answer, again = (each.content for each in _TALK[:3])
    try:
        head, turn = _around(rendered(_TALK[0]), question)
        gap, back = _around(rendered(*_TALK[:3]).removeprefix(head + question + turn).removesuffix(again + turn), answer)
        found = [Shape(head, turn, gap, back, "none")]
        try:
            before, after = _around(rendered(_SYSTEM, _TALK[0]).removesuffix(question + turn), _SYSTEM.content)
            found = [Shape(head, turn, gap, back, "first", before, after)]
            found += [Shape(head, turn, gap, back, "last", before.removeprefix(head), after)] if before.startswith(head) else []
        except TemplateFailure:
            pass
        for each in found:
            systems: list[tuple[Message, ...]] = [()] if each.system == "none" else [(), (_SYSTEM,)]
            talks = [(*system, *_TALK[:length]) for system in systems for length in (1, 3, 5)]
            if all(rendered(*talk) == each.render(talk) for talk in talks):
                return each
    except (TemplateFailure, ValueError) as error:
        raise UserError(f"{_REFUSED} ({error})") from None
    raise UserError(_REFUSED)


_REFUSED = (
    "this chat template cannot be written for Ollama: it writes more between the turns of a conversation than Llama 3's headers, ChatML, "
    "Phi-3's, Gemma's, Llama 2's and Mistral's do. Leave out export.modelfile; llama.cpp and vLLM read the template itself"
)


def _around(text: str, said: str) -> tuple[str, str]:
    """Split a text at what is said in it, which must stand there once."""
    before, found, after = text.partition(said)
    if not found or said in after:
        raise ValueError(f"{said!r} is not written once")
    return before, after


def write(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], sampling: dict[str, float]) -> str:
    """Return the Modelfile. `stops` end an answer; `sampling` is by Ollama's names. Raises `UserError` as `shape` does."""
    found = shape(tokenizer)
    lines = [
        f"# For Ollama: `ollama create NAME -f {NAME}`, in this folder, after llama.cpp's converter has written {GGUF} here.",
        *(["# Its chat template takes no system message: one is not written."] if found.system == "none" else []),
        f"FROM ./{GGUF}",
        f'TEMPLATE """{found.go()}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        *(f"PARAMETER {name} {value:g}" for name, value in sampling.items()),
    ]
    return "\n".join(lines) + "\n"
