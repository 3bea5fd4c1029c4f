"""How rows are put into words: the one place for questions, their choices, and the requests of every other kind.

In: the parts of a row (a question and its choices, an article, a dialogue), or a `Question`. Out: the text that asks,
or a `Conversation` to learn from. Each kind has several phrasings; a hash of the seed and the row's id chooses, so that
a row keeps its words when others come or go.

A `Question` is asked in one form everywhere, the one that `with_choices` writes: evaluation scores that. Only what is
learnt is put in other words, and its answer stays the right choice's whole text, which is what evaluation scores too.
"""

from collections.abc import Sequence
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message, Question, stable_hash
from rounds.data_prep.turns import ask

# `{question}` and `{options}`; the first is the form of `with_choices`. Letters and numbers only mark the options.
MULTIPLE_CHOICE = (
    ("-", "{question}\n\nChoose one:\n{options}"),
    ("A", "{question}\n\n{options}"),
    ("A", "{question}\n\nOptions:\n{options}\n\nAnswer with the full text of the right option."),
    ("A", "Choose the best answer.\n\nQuestion: {question}\n\n{options}\n\nState the answer in full."),
    ("1", "{question}\n\nWhich of these is right?\n{options}"),
)
# The same for choices of a word or two, such as yes, no and maybe, which need no list: the first is that of `with_words`.
SHORT_CHOICE = (
    "{question}\n\nAnswer {words}.",
    "{question}\n\nIs it {words}?",
    "{question}\n\nReply with one of: {words}.",
    "Answer {words}.\n\n{question}",
)
# The parts in braces are what `request` is given. Questions that people ask stand mostly alone, as they do in use.
REQUESTS: dict[str, tuple[str, ...]] = {
    "answer": (
        "{question}",
        "{question}",
        "Answer this question.\n\n{question}",
        "Question: {question}",
    ),
    "answer_from_text": (
        "{question}\n\nUse this text:\n{text}",
        "Read the text and answer the question.\n\nText: {text}\n\nQuestion: {question}",
        "{text}\n\nFrom the text above: {question}",
    ),
    "note": (
        "Write the clinical note for this visit.\n\n{text}",
        "Here is a conversation between a doctor and a patient. Turn it into a full clinical note.\n\n{text}",
        "{text}\n\nDocument the visit above as a clinical note.",
    ),
    "note_section": (
        'Write the section "{section}" of the clinical note from this conversation.\n\n{text}',
        "Summarise this conversation for the {section} section of a clinical note.\n\n{text}",
        '{text}\n\nFrom the conversation above, write what belongs under "{section}" in the note.',
    ),
    "summary": (
        "Summarise this text.\n\n{text}",
        "{text}\n\nGive a short summary of the text above.",
        "What does this text say, in short?\n\n{text}",
    ),
    "title": (
        "Write a title for this abstract.\n\n{text}",
        "{text}\n\nSum up the abstract above in a title.",
        "Which title would suit a paper with this abstract?\n\n{text}",
    ),
    "classification": (
        "{question}\n\n{text}",
        "{text}\n\n{question}",
        "Read this and classify it.\n\n{text}\n\n{question}",
    ),
    "task": (
        "{question}\n\n{text}",
        "{question}\n\nInput: {text}",
        "Task: {question}\n\nInput: {text}\n\nOutput:",
    ),
}


def with_choices(question: str, choices: Sequence[str]) -> str:
    """Return the text that asks a question with its choices, one a line: the form that evaluation scores.

    The choices carry no letters, because the answer to learn and to score is a choice's whole text: small models stay
    at chance on letters while they know the texts.
    """
    return _phrased(0, question, choices)


def with_words(question: str, choices: Sequence[str]) -> str:
    """Return the text that asks a question whose choices are words, in the form that evaluation scores."""
    return SHORT_CHOICE[0].format(question=question.strip(), words=_words(choices))


def to_conversation(question: Question, *, seed: int = 0, system: str | None = None) -> Conversation:
    """Return the question with the right choice's full text as the assistant's answer.

    A question asked in the words of `with_choices` is asked in one of `MULTIPLE_CHOICE`, one asked in those of `with_words`
    in one of `SHORT_CHOICE`; another form is left alone.
    `system` is said first where the question brings no system turn of its own.
    """
    *before, last = question.prompt
    bare = _without_choices(last.content, question.choices)
    if bare is not None:
        index = _pick(len(MULTIPLE_CHOICE), seed, "multiple_choice", question.id)
        last = Message(last.role, _phrased(index, bare, question.choices))
    elif (short := _without_words(last.content, question.choices)) is not None:
        phrasing = SHORT_CHOICE[_pick(len(SHORT_CHOICE), seed, "short_choice", question.id)]
        last = Message(last.role, phrasing.format(question=short, words=_words(question.choices)))
    if system and not (before and before[0].role == "system"):
        before = [Message("system", system), *before]
    answer = Message("assistant", question.choices[question.answer])
    return Conversation(question.id, question.source, (*before, last, answer), question.group)


def phrasings(question: Question) -> list[str]:
    """Return all texts that `to_conversation` may ask a question in, the one that evaluation scores among them."""
    last, choices = question.prompt[-1].content, question.choices
    if (bare := _without_choices(last, choices)) is not None:
        return [_phrased(index, bare, choices) for index in range(len(MULTIPLE_CHOICE))]
    if (bare := _without_words(last, choices)) is not None:
        return [phrasing.format(question=bare, words=_words(choices)) for phrasing in SHORT_CHOICE]
    return [last]


def question_alone(asked: str, choices: Sequence[str]) -> str:
    """Return the question in a text that lists these choices after it, in the form that evaluation scores; any other text as it is."""
    for found in (_without_choices(asked, choices), _without_words(asked, choices)) if choices else ():
        if found is not None:
            return found
    return asked


def request(kind: str, name: str, *, seed: int = 0, **parts: str) -> str:
    """Return the text that asks for something of this kind (see `REQUESTS`), in words that `seed` and `name` choose."""
    phrasings = REQUESTS[kind]
    return phrasings[_pick(len(phrasings), seed, kind, name)].format(**{key: part.strip() for key, part in parts.items()})


def exchange(source: str, name: str, asked: str, answer: str, *, system: str | None = None, group: str = "") -> Conversation:
    """Return a conversation of one request and its answer."""
    return Conversation(name, source, (*ask(asked, system), Message("assistant", answer)), group)


def system_prompt(path: Path) -> str:
    """Return the system prompt in a file such as `recipes/prompts/medical_assistant.md`: the whole file, trimmed."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the system prompt cannot be read: {type(error).__name__}") from None
    if not text:
        raise UserError(f"{path}: the system prompt is empty")
    return text


def _pick(count: int, seed: int, kind: str, name: str) -> int:
    return stable_hash("phrasing", seed, kind, name) % count


def _phrased(index: int, question: str, choices: Sequence[str]) -> str:
    first_mark, phrasing = MULTIPLE_CHOICE[index]
    return phrasing.format(question=question.strip(), options="\n".join(_listed(first_mark, choices)))


def _listed(first_mark: str, choices: Sequence[str]) -> list[str]:
    marks = [_mark(first_mark, place) for place in range(len(choices))]
    return [f"{mark} {choice.strip()}" for mark, choice in zip(marks, choices, strict=True)]


def _mark(first_mark: str, place: int) -> str:
    if first_mark == "-":
        return "-"
    # Beyond Z letters run out: no exam has so many choices, but a row of the user's own may.
    return f"{chr(ord('A') + place)}." if first_mark == "A" and place < 26 else f"{place + 1}."


def _without_choices(asked: str, choices: Sequence[str]) -> str | None:
    """Return the question in a text that `with_choices` wrote for these choices; None for any other text."""
    tail = with_choices("", choices)
    return asked.removesuffix(tail) if asked.endswith(tail) and len(asked) > len(tail) else None


def _without_words(asked: str, choices: Sequence[str]) -> str | None:
    tail = with_words("", choices)
    return asked.removesuffix(tail) if asked.endswith(tail) and len(asked) > len(tail) else None


def _words(choices: Sequence[str]) -> str:
    *first, last = choices
    return f"{', '.join(first)} or {last}"
