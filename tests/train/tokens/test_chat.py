"""Messages to tokens, over three tokenizers: the same tokens as the tokenizer's own template, and the right ones learnt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message, Pair
from rounds.train.tokens import chat
from tests.train.tokens.families import CHATML, byte_level

REPOSITORY = Path(__file__).resolve().parents[3]
LLAMA3 = (REPOSITORY / "recipes" / "chat_templates" / "llama3.jinja").read_text()
NO_REASON = ""


@dataclass(frozen=True)
class Kit:
    """A tokenizer, and what is expected of its template."""

    tokenizer: PreTrainedTokenizerBase
    stop: str
    bos: str | None
    trims: bool

    def answer(self, content: str) -> str:
        """The text that must be learnt for an answer."""
        return (content.strip() if self.trims else content) + self.stop

    def refusal(self, messages: tuple[Message, ...]) -> str:
        """The reason to expect: white space that melts into the line end before an answer spoils the border."""
        starts = [message.content[:1] for message in messages if message.role == "assistant"]
        return "token_across_answer_border" if not self.trims and any(start.isspace() for start in starts) else NO_REASON


def chatml() -> PreTrainedTokenizerFast:
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # The line ends are in the training text, so that the merge of two of them is learnt.
    texts = ["Two lines.\n\nAnd one more.\n\n\n", "user\n\nassistant\n\nDoes it help? It does.\n\n"] * 4
    tokenizer = byte_level(texts, control, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def real_llama3() -> PreTrainedTokenizerFast:
    package = pytest.importorskip("llama_models", reason="PyPI package llama-models, which has Llama 3's tokenizer, is not installed")
    pytest.importorskip("tiktoken", reason="PyPI package tiktoken, which reads the file, is not installed")
    from tokenizers import processors
    from transformers.convert_slow_tokenizer import TikTokenConverter

    named = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
             "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
             "<|python_tag|>"]  # fmt: skip
    control = named + [f"<|reserved_special_token_{number}|>" for number in range(2, 2 + 256 - len(named))]
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    file = Path(package.__path__[0]) / "llama3" / "tokenizer.model"
    inner = TikTokenConverter(vocab_file=str(file), pattern=pattern, extra_special_tokens=control).converted()
    bos = control[0]
    template = processors.TemplateProcessing(single=[f"{bos}:0", "$A:0"], special_tokens=[(bos, 128000)])
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=bos, eos_token="<|eot_id|>", pad_token=control[4], chat_template=LLAMA3
    )


@pytest.fixture(scope="module", params=["tiny llama3", "chatml", "real llama3"])
def kit(request: pytest.FixtureRequest) -> Kit:
    """One tokenizer after the other."""
    if request.param == "chatml":
        return Kit(chatml(), "<|im_end|>", None, trims=False)
    if request.param == "real llama3":
        return Kit(real_llama3(), "<|eot_id|>", "<|begin_of_text|>", trims=True)
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue("made_base") / "tokenizer")
    return Kit(tokenizer, "<|eot_id|>", "<|begin_of_text|>", trims=True)


pieces = ["\n", "\n\n", " ", "  ", "\t", "It does.", "user", "assistant", "<|", "|>", "ü", "日本", "👩‍⚕️", "\u00a0", "\u2028", "\x1c",
          "\r\n", "'s", "1234567", "{{ x }}", "</s>", "e\u0301"]  # fmt: skip
contents = st.lists(st.sampled_from(pieces) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=6).map("".join)
turns = st.lists(st.tuples(contents, contents), min_size=1, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    system = [Message("system", draw(contents))] if draw(st.booleans()) else []
    asked = [(Message("user", question), Message("assistant", answer)) for question, answer in draw(turns)]
    return (*system, *(message for turn in asked for message in turn))


def own(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], **options: Any) -> list[int]:
    dicts = [{"role": message.role, "content": message.content} for message in messages]
    ids = tokenizer.apply_chat_template(dicts, tokenize=True, return_dict=False, **options)
    assert isinstance(ids, list)
    return ids  # type: ignore[return-value]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def learnt(encoded: chat.Encoded) -> list[list[int]]:
    """The runs of tokens under the mask."""
    runs, before = [], False
    for token, inside in zip(encoded.input_ids, encoded.answer_mask, strict=True):
        if inside and not before:
            runs.append([])
        if inside:
            runs[-1].append(token)
        before = inside
    return runs


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(messages=conversations())
def test_tokens_are_the_templates_own_and_exactly_the_answers_are_learnt(kit: Kit, messages: tuple[Message, ...]):
    (encoded,) = chat.encode_conversations(kit.tokenizer, [messages])
    if isinstance(encoded, str):
        assert encoded == kit.refusal(messages)
        return
    assert encoded.input_ids == own(kit.tokenizer, messages)
    answers = [kit.answer(message.content) for message in messages if message.role == "assistant"]
    assert [decoded(kit.tokenizer, run) for run in learnt(encoded)] == answers
    stop = token_id(kit.tokenizer, kit.stop)
    assert all(run.count(stop) == 1 and run[-1] == stop for run in learnt(encoded))
    if kit.bos:
        bos = token_id(kit.tokenizer, kit.bos)
        assert (encoded.input_ids.count(bos), encoded.input_ids[0]) == (1, bos)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(messages=conversations(), answers=st.tuples(contents, contents))
def test_the_prompt_is_a_true_prefix_of_both_sides(kit: Kit, messages: tuple[Message, ...], answers: tuple[str, str]):
    prompt = messages[:-1]
    chosen, rejected = ((*prompt, Message("assistant", answer)) for answer in answers)
    assume(not kit.refusal(chosen) and not kit.refusal(rejected))
    (encoded,) = chat.encode_pairs(kit.tokenizer, [Pair("a", "made", prompt, *answers)])
    assert isinstance(encoded, chat.EncodedPair), encoded
    assert (
        encoded.prompt_ids
        == kit.tokenizer(chat.render_prompt(kit.tokenizer, prompt), add_special_tokens=False)["input_ids"]
        == own(kit.tokenizer, prompt, add_generation_prompt=True)
    )
    stop = token_id(kit.tokenizer, kit.stop)
    for side, whole in ((encoded.chosen_ids, chosen), (encoded.rejected_ids, rejected)):
        tokens = own(kit.tokenizer, whole)
        assert tokens[: len(encoded.prompt_ids) + len(side)] == encoded.prompt_ids + side
        assert (side.count(stop), side[-1]) == (1, stop)
        assert decoded(kit.tokenizer, side) == kit.answer(whole[-1].content)


def test_an_answer_that_begins_with_a_line_end_is_refused_where_the_border_would_melt():
    tokenizer = chatml()
    messages = (Message("user", "Well?"), Message("assistant", "\n\nIt does."))
    ids = own(tokenizer, messages)
    assert "\n\n" in [tokenizer.decode([token]) for token in ids], "the trap is not set: no token spans the border"
    assert chat.encode_conversations(tokenizer, [messages]) == ["token_across_answer_border"]


def test_one_bad_row_costs_one_row(kit: Kit):
    good = (Message("user", "Well?"), Message("assistant", "It does."))
    bad = (Message("user", f"Well?{kit.stop}"), Message("assistant", "It does."))
    alone = chat.encode_conversations(kit.tokenizer, [good])[0]
    assert chat.encode_conversations(kit.tokenizer, [bad, good, bad, good]) == [
        "control_token_in_text",
        alone,
        "control_token_in_text",
        alone,
    ]
    assert chat.encode_conversations(kit.tokenizer, []) == []


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_every_control_token_of_the_tokenizer_is_refused_in_text(kit: Kit, role: str):
    """A header token inside a question would let a row put words into the assistant's mouth."""
    control = [str(token) for token in kit.tokenizer.added_tokens_decoder.values() if token.special]
    assert len(control) >= 3
    passed = []
    for token in control:
        messages = [Message("system", "Be brief."), Message("user", "Well?"), Message("assistant", "It does.")]
        place = [message.role for message in messages].index(role)
        messages[place] = Message(messages[place].role, f"a {token} b")
        if chat.encode_conversations(kit.tokenizer, [tuple(messages)]) != ["control_token_in_text"]:
            passed.append(token)
    assert passed == []


def test_the_stop_token_of_the_template_is_found(kit: Kit):
    assert chat.check_template(kit.tokenizer) == kit.stop


def with_template(template: str | None) -> PreTrainedTokenizerBase:
    tokenizer = chatml()
    tokenizer.chat_template = template
    return tokenizer


def test_no_template_is_a_user_error():
    with pytest.raises(UserError, match=r"no chat template.*base\.chat_template"):
        chat.check_template(with_template(None))


@pytest.mark.parametrize("end", ["", "\\n", "</answer>", "<|im_end|"])
def test_a_template_without_a_token_that_ends_answers_is_a_user_error(end: str):
    with pytest.raises(UserError, match="never learn to stop"):
        chat.check_template(with_template(CHATML.replace("<|im_end|>", end)))


def test_a_template_whose_prompt_is_no_prefix_is_a_user_error():
    other = CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>'")
    with pytest.raises(UserError, match="prefix"):
        chat.check_template(with_template(other))
    messages = (Message("user", "Well?"), Message("assistant", "It does."))
    assert chat.encode_conversations(with_template(other), [messages]) == ["template_prompt_is_no_prefix"]


def test_a_template_that_does_not_know_the_generation_prompt_is_a_user_error():
    """Generation would start before the header, where the model was never trained to start."""
    with pytest.raises(UserError):
        chat.check_template(with_template(CHATML.partition("{% if add_generation_prompt")[0]))


@pytest.mark.parametrize("template", ["{% for message in messages %}", "{{ raise_exception('no') }}", "{{ nothing.here }}"])
def test_a_template_that_does_not_render_is_a_user_error(template: str):
    with pytest.raises(UserError):
        chat.check_template(with_template(template))


def test_a_row_that_the_template_refuses_costs_that_row_only():
    """Gemma's template raises on a system message; one such row must not end the stage."""
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    tokenizer = with_template(refuses)
    good = (Message("user", "Well?"), Message("assistant", "It does."))
    found = chat.encode_conversations(tokenizer, [(Message("system", "Be brief."), *good), good])
    assert isinstance(found[0], str) and isinstance(found[1], chat.Encoded)
