"""Templates of the kinds that people train: what can be learnt exactly is learnt, and what cannot is not.

Covers: train/tokens/rendering.
"""

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message, Pair
from rounds.train.tokens import chat
from tests.train.tokens import families
from tests.train.tokens.families import CHATML, tokenizer

SYSTEM, QUESTION, FURTHER = Message("system", "Be brief."), Message("user", "Well?"), Message("user", "Why?")
ANSWER, LAST = Message("assistant", "It does."), Message("assistant", "Because.")
TALK = (QUESTION, ANSWER, FURTHER, LAST)
THOUGHT = "<think>\nHm, so.\n</think>\n\n"


def learnt(using: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> list[str] | str:
    """The texts that are learnt of a conversation, or the reason why it is dropped; its tokens are the template's own."""
    (encoded,) = chat.encode_conversations(using, [messages])
    if isinstance(encoded, str):
        return encoded
    dicts = [{"role": each.role, "content": each.content, "reasoning_content": each.reasoning or None} for each in messages]
    assert encoded.input_ids == using.apply_chat_template(dicts, tokenize=True, return_dict=False)
    return [str(using.decode(encoded.input_ids[start:end])) for start, end in encoded.answers]


KINDS = [
    ("chatml", CHATML, "<|im_end|>", ["It does.<|im_end|>", "Because.<|im_end|>"]),
    ("llama2", families.LLAMA2, "</s>", [" It does. </s>", " Because. </s>"]),
    ("mistral", families.MISTRAL, "</s>", [" It does.</s>", " Because.</s>"]),
    ("mistral_v3", families.MISTRAL_V3, "</s>", [" It does.</s>", " Because.</s>"]),
    ("qwen3", families.QWEN3, "<|im_end|>", ["<think>\n\n</think>\n\nBecause.<|im_end|>"]),
    ("gpt_oss", families.GPT_OSS, "<|return|>", ["<|channel|>final<|message|>Because.<|return|>"]),
    ("phi3", families.PHI3, "<|end|>", ["It does.<|end|>", "Because.<|end|>"]),
    ("gemma", families.GEMMA, "<end_of_turn>", ["It does.<end_of_turn>", "Because.<end_of_turn>"]),
    ("deepseek_r1", families.DEEPSEEK_R1, "</s>", ["It does.</s>", "Because.</s>"]),
]


@pytest.mark.parametrize(("template", "stop", "wanted"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_what_can_be_learnt_exactly_is_learnt(template: str, stop: str, wanted: list[str]):
    using = tokenizer(template)
    assert chat.check_template(using) == stop
    assert learnt(using, TALK) == wanted
    assert learnt(using, (QUESTION, replace_content(ANSWER, "a")))[-1].endswith(f"a{' ' * (template is families.LLAMA2)}{stop}")
    (encoded,) = chat.encode_conversations(using, [TALK])
    assert isinstance(encoded, chat.Encoded)
    assert encoded.left_out == ((1,) if len(wanted) == 1 else ())
    assert chat.template_limits(using).keys() >= ({"earlier answers"} if len(wanted) == 1 else set())
    # Each answer by itself, as the model would have to write it there.
    alone = [learnt(using, each) for each in chat.answers_apart(TALK, (1, 3))]
    assert [len(each) for each in alone] == [1, 1] and alone[1] == wanted[-1:]


def replace_content(message: Message, content: str) -> Message:
    return Message(message.role, content)


@pytest.mark.parametrize("template", [kind[1] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_a_pair_of_several_turns_needs_its_last_answers_prompt_only(template: str):
    using = tokenizer(template)
    (pair,) = chat.encode_pairs(using, [Pair("a", "made", TALK[:-1], "Because.", "No idea.")])
    assert isinstance(pair, chat.EncodedPair), pair
    dicts = [{"role": each.role, "content": each.content} for each in TALK[:-1]]
    assert pair.prompt_ids == using.apply_chat_template(dicts, tokenize=True, return_dict=False, add_generation_prompt=True)
    for ids, answer in ((pair.chosen_ids, "Because."), (pair.rejected_ids, "No idea.")):
        whole = using.apply_chat_template([*dicts, {"role": "assistant", "content": answer}], tokenize=True, return_dict=False)
        assert (pair.prompt_ids + ids) == whole[: len(pair.prompt_ids) + len(ids)]  # type: ignore[index]
        assert answer in str(using.decode(ids))
    cut = Pair("a", "made", TALK[:-1], "Because.", "No idea.", rejected_ending="cut")
    for whole in (False, True):
        (full,) = chat.encode_pairs(using, [replace(cut, rejected_ending="")], whole=whole)
        (found,) = chat.encode_pairs(using, [cut], whole=whole)
        assert isinstance(found, chat.EncodedPair) and isinstance(full, chat.EncodedPair)
        assert found.chosen_ids == full.chosen_ids and found.rejected_ids == pair.rejected_ids[:-1]


def test_a_system_turn_that_moves_into_the_last_question_is_no_loss():
    using = tokenizer(families.MISTRAL_V3)
    assert learnt(using, (SYSTEM, *TALK)) == [" Because.</s>"]
    assert learnt(using, (SYSTEM, *TALK[:2])) == [" It does.</s>"]


@pytest.mark.parametrize("start", ["<s>[INST] ", ""])
def test_the_marks_of_a_prompt_are_not_taken_for_a_lost_header(start: str):
    """A template without a header of the answer may ignore add_generation_prompt; one with a header may not."""
    assert chat.check_template(tokenizer(families.MISTRAL.replace("'<s>'", f"'{start}'"))) == "</s>"
    with pytest.raises(UserError, match=r"add_generation_prompt.*assistant"):
        chat.check_template(tokenizer(CHATML.partition("{% if add_generation_prompt")[0]))


def test_white_space_that_an_end_token_swallows_is_its_own():
    using = tokenizer(families.PHI3, rstrip=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"))
    assert chat.check_template(using) == "<|end|>"
    assert learnt(using, (SYSTEM, *TALK)) == ["It does.<|end|>", "Because.<|end|>"]
    (pair,) = chat.encode_pairs(using, [Pair("a", "made", TALK[:-1], "Because.", "No idea.")])
    assert isinstance(pair, chat.EncodedPair)
    assert using.decode(pair.chosen_ids) == "Because.<|end|>"


@pytest.mark.parametrize("after", ["<|im_start|>user\\n", "\\n<|im_start|>", "<|endoftext|>"])
def test_the_stop_token_is_the_first_that_ends_the_answer(after: str):
    using = tokenizer(CHATML.replace("'<|im_end|>' + '\\n'", f"'<|im_end|>{after}'"))
    assert chat.check_template(using) == "<|im_end|>"
    assert learnt(using, (QUESTION, replace_content(ANSWER, "start user"))) == ["start user<|im_end|>"]


LOST = [
    ("system turn", CHATML.replace("messages %}", "messages if message.role != 'system' %}"), (SYSTEM, QUESTION, ANSWER)),
    ("system turn of one letter", CHATML.replace("messages %}", "messages if message.role != 'system' %}"),
     (Message("system", "a"), QUESTION, ANSWER)),
    ("think block of the answer", families.DEEPSEEK_R1, (QUESTION, Message("assistant", f"{THOUGHT}It does."))),
    ("reasoning beside the answer", CHATML, (QUESTION, Message("assistant", "It does.", reasoning="Hm, so."))),
    ("all but the last question", CHATML.replace("messages %}", "messages[-2:] %}"), TALK),
    ("the end of a content", CHATML.replace("message['content']", "message['content'][:20]"),
     (Message("user", "This is a question that is long."), ANSWER)),
    ("the middle of a content", CHATML.replace("message['content']", "message['content'] | replace('not ', '')"),
     (QUESTION, Message("assistant", "It does not help."))),
]  # fmt: skip


@pytest.mark.parametrize(("template", "messages"), [case[1:] for case in LOST], ids=[case[0] for case in LOST])
def test_a_row_whose_contents_are_not_all_written_is_dropped_with_a_reason(template: str, messages: tuple[Message, ...]):
    using = tokenizer(template)
    assert learnt(using, messages) == "template_loses_content"
    assert learnt(using, (QUESTION, ANSWER)) == learnt(tokenizer(template), (QUESTION, ANSWER)) != "template_loses_content"
    pair = Pair("a", "made", messages[:-1], messages[-1].content, "No idea.")
    if not messages[-1].reasoning:
        assert chat.encode_pairs(using, [pair]) == ["template_loses_content"]


def test_a_think_block_is_learnt_in_the_last_answer_and_may_leave_the_history():
    using = tokenizer(families.QWEN3)
    thoughtful = (QUESTION, Message("assistant", f"{THOUGHT}It does."), FURTHER, Message("assistant", f"{THOUGHT}Because."))
    assert learnt(using, thoughtful) == [f"{THOUGHT}Because.<|im_end|>"]
    beside = (QUESTION, Message("assistant", "It does.", reasoning="Hm, so."))
    assert learnt(using, beside) == [f"{THOUGHT}It does.<|im_end|>"]
    assert learnt(tokenizer(families.GPT_OSS), beside) == ["<|channel|>analysis<|message|>Hm, so.<|end|><|start|>assistant<|channel|>final"
                                                           "<|message|>It does.<|return|>"]  # fmt: skip


def test_what_was_thought_before_a_side_of_a_pair_is_learnt_as_the_template_writes_it():
    using = tokenizer(families.QWEN3)
    pair = Pair("a", "made", (QUESTION,), "It does.", "It does.", chosen_reasoning="Hm, so.", rejected_reasoning="No idea.")
    (found,) = chat.encode_pairs(using, [pair])
    assert not isinstance(found, str)
    assert [using.decode(ids) for ids in (found.chosen_ids, found.rejected_ids)] == [
        f"{THOUGHT}It does.<|im_end|>", THOUGHT.replace("Hm, so.", "No idea.") + "It does.<|im_end|>"]  # fmt: skip
    assert chat.encode_pairs(tokenizer(CHATML), [pair]) == ["template_loses_content"]


def test_an_answer_that_is_not_to_be_learnt_is_read_and_not_learnt():
    using = tokenizer(CHATML)
    unlearnt = Message("assistant", "It does.", learnt=False)
    assert learnt(using, (QUESTION, unlearnt, FURTHER, LAST)) == ["Because.<|im_end|>"]
    assert learnt(using, (QUESTION, ANSWER, FURTHER, Message("assistant", "Because.", learnt=False))) == ["It does.<|im_end|>"]
    assert learnt(using, (QUESTION, unlearnt)) == []
    assert learnt(tokenizer(families.QWEN3), (QUESTION, unlearnt, FURTHER, LAST)) == ["<think>\n\n</think>\n\nBecause.<|im_end|>"]


LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}"
BAD = [
    ("{% include 'other.jinja' %}", "another file"),
    ("{% import 'other.jinja' as other %}", "another file"),
    ("{% extends 'other.jinja' %}", "another file"),
    ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "calls itself"),
    ("{{ range(10 ** 9) }}", "cannot render"),
    ("{{ 1 / 0 }}", "cannot render"),
    ("{{ messages[7]['content'] + 1 }}", "cannot render"),
    ("{{ ''.__class__.__mro__ }}", "cannot render"),
    (LOOP, "without an end"),
    ("{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(90) }}", "without an end"),
    ('{{ "a" * 10**10 }}', "more memory"),
    ('{{ "%10000000000d" % 1 }}', "more memory"),
    ('{{ "{:>10000000000}".format(1) }}', "more memory"),
    ('{{ "a" | center(10**10) }}', "more memory"),
    ('{% set a = namespace(b="a") %}{% for c in range(40) %}{% set a.b = a.b ~ a.b %}{% endfor %}', "more memory|without an end"),
    ("{{ [1] * 10**10 }}", "more memory"),
    (CHATML.replace("message['content']", "'words'"), "leaves out the question"),
    (CHATML.replace("message['content']", "(message.content if message.role == 'user' else '')"), "leaves out the answer"),
]


@pytest.mark.parametrize(("template", "message"), BAD)
def test_a_template_that_cannot_be_used_is_one_message(template: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "_PROBE_SECONDS", 0.3)
    with pytest.raises(UserError, match=message):
        chat.check_template(tokenizer(template if "message" in template else template + CHATML))


def test_a_loop_that_only_some_rows_meet_ends_with_a_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "_ROW_SECONDS", 0.3)
    using = tokenizer("{% if messages | length > 3 %}" + LOOP + "{% endif %}" + CHATML)
    assert chat.check_template(using) == "<|im_end|>"
    with pytest.raises(UserError, match="4 turns"):
        chat.encode_conversations(using, [TALK[:2], TALK])


def test_the_limits_of_a_template_are_named():
    assert chat.template_limits(tokenizer(CHATML)).keys() == {"reasoning beside answers"}
    assert chat.template_limits(tokenizer(families.MISTRAL))["system turns"] == "refused; such rows are dropped"
    assert chat.template_limits(tokenizer(families.QWEN3)).keys() == {"earlier answers"}
    assert "think blocks in answers" in chat.template_limits(tokenizer(families.DEEPSEEK_R1))
