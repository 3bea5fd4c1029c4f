"""A question is asked in one form for evaluation and in several to learn from; no request is ever empty words."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rounds.data_prep import render
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message, Question
from rounds.data_prep.turns import ask

ROOT = Path(__file__).resolve().parents[2]
WORDS = st.text(min_size=1).filter(lambda text: text.strip() != "")
CHOICES = st.lists(WORDS, min_size=2, max_size=6)


def closed(name: str, asked: str, choices: list[str], answer: int) -> Question:
    return Question(name, "exam", ask(render.with_choices(asked, choices)), tuple(choices), answer, "g")


def example(kind: str, name: str, seed: int) -> str:
    return render.request(kind, name, seed=seed, question="Why?", text="A text {with} braces.", section="Plan")


def test_choices_are_listed_without_letters() -> None:
    assert render.with_choices("Which? ", ["one", " two"]) == "Which?\n\nChoose one:\n- one\n- two"


@given(st.lists(st.text(min_size=1), min_size=2, max_size=5), st.data())
def test_the_answer_is_the_right_choice(choices: list[str], data: st.DataObject) -> None:
    answer = data.draw(st.integers(0, len(choices) - 1))
    question = Question("7", "exam", (Message("system", "s"), Message("user", "u")), tuple(choices), answer, "g")
    found = render.to_conversation(question)
    assert found.messages == (*question.prompt, Message("assistant", choices[answer]))
    assert (found.id, found.source, found.group) == ("7", "exam", "g")


@given(WORDS, WORDS, CHOICES, st.integers(0, 5), st.integers(0, 3))
def test_a_question_keeps_its_words_choices_and_answer(name: str, asked: str, choices: list[str], right: int, seed: int) -> None:
    question = closed(name, asked, choices, right % len(choices))
    found = render.to_conversation(question, seed=seed)
    user, assistant = found.messages
    assert (user.role, assistant.role) == ("user", "assistant")
    assert assistant.content == choices[question.answer]
    assert user.content.strip()
    assert asked.strip() in user.content
    assert all(choice.strip() in user.content for choice in choices)
    assert render.to_conversation(question, seed=seed) == found


@given(st.sampled_from(sorted(render.REQUESTS)), st.text(), WORDS, st.integers(0, 3))
def test_a_request_holds_its_parts_and_is_the_same_again(kind: str, name: str, text: str, seed: int) -> None:
    found = render.request(kind, name, seed=seed, question=text, text=text, section="Plan")
    assert text.strip() in found
    assert found == render.request(kind, name, seed=seed, question=text, text=text, section="Plan")


def test_every_phrasing_is_used_and_the_seed_changes_them() -> None:
    names = [str(number) for number in range(200)]
    for kind, phrasings in render.REQUESTS.items():
        asked = [example(kind, name, 0) for name in names]
        assert len(set(asked)) == len(set(phrasings)) > 1
        assert asked != [example(kind, name, 1) for name in names]
    questions = [closed(name, "Which?", ["one", "two"], 0) for name in names]
    asked = {render.to_conversation(each).messages[0].content for each in questions}
    assert len(asked) == len(render.MULTIPLE_CHOICE)
    assert "Which?\n\nA. one\nB. two" in asked


def test_the_first_phrasing_is_the_form_that_evaluation_scores() -> None:
    question = closed("q", "Which?", ["one", "two"], 1)
    assert question.prompt[0].content == render.with_choices("Which?", ["one", "two"])
    assert render.MULTIPLE_CHOICE[0] == ("-", "{question}\n\nChoose one:\n{options}")


def test_a_question_of_words_is_learnt_in_several_phrasings_and_asked_in_one() -> None:
    words = ["yes", "no", "maybe"]
    assert render.with_words("Is it so? ", words) == "Is it so?\n\nAnswer yes, no or maybe."
    questions = [Question(str(n), "exam", ask(render.with_words("Is it so?", words)), tuple(words), 2) for n in range(80)]
    learnt = [render.to_conversation(each) for each in questions]
    asked = {each.messages[0].content for each in learnt}
    assert len(asked) == len(render.SHORT_CHOICE)
    assert all("Is it so?" in text and "yes, no or maybe" in text for text in asked)
    assert {each.messages[-1].content for each in learnt} == {"maybe"}
    assert {render.to_conversation(each, seed=1).messages[0].content for each in questions} == asked


def test_many_choices_are_numbered_when_letters_run_out() -> None:
    choices = [f"choice {number}" for number in range(30)]
    asked = {render.to_conversation(closed(str(name), "Which?", choices, 0)).messages[0].content for name in range(50)}
    assert any("\nZ. choice 25\n27. choice 26" in text for text in asked)


def test_a_system_prompt_is_said_first_unless_there_is_one() -> None:
    question = closed("q", "Which?", ["one", "two"], 1)
    assert render.to_conversation(question, system="Be brief.").messages[0] == Message("system", "Be brief.")
    own = Question("q", "exam", ask("Which?", "Own."), ("one", "two"), 1)
    assert [turn.role for turn in render.to_conversation(own, system="Be brief.").messages] == [
        "system",
        "user",
        "assistant",
    ]
    assert render.to_conversation(own, system="Be brief.").messages[0].content == "Own."


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "prompts").glob("*.*")), ids=lambda path: path.name)
def test_the_system_prompts_that_come_along_are_plain_and_short(path: Path) -> None:
    text = render.system_prompt(path)
    assert path.suffix == ".md"
    assert 0 < len(text) < 1000
    assert "#" not in text


def test_no_system_prompt_is_written_in_code() -> None:
    """What a model is told first is a person's to read and to change: it is a file, whose text is part of a stage's key."""
    for path in [*(ROOT / "data_prep").rglob("*.py"), *(ROOT / "train").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Message":
                literals = [each.value for each in (*node.args, *(key.value for key in node.keywords)) if isinstance(each, ast.Constant)]
                assert not ("system" in literals and len(literals) > 1), f"{path}:{node.lineno}"


def test_a_system_prompt_that_cannot_be_used_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty.md").write_text(" \n")
    with pytest.raises(UserError, match="is empty"):
        render.system_prompt(tmp_path / "empty.md")
    with pytest.raises(UserError, match="cannot be read: FileNotFoundError"):
        render.system_prompt(tmp_path / "absent.md")
