"""Your own rows: JSONL, JSON, CSV, TSV, parquet or xlsx, compressed or not, or a folder of these or of `save_to_disk`.

In: `path`, `format`, and `columns` (our name -> yours) of the recipe. Out: conversations, questions, pairs or prompts.
Licence: yours to state (`licence:`). One row of each format, with our names for the columns:

    messages          {"messages": [{"role": "user", "content": "What is an ECG?"},
                                    {"role": "assistant", "content": "A recording of the heart's electricity."}]}
    question_answer   {"question": "What is an ECG?", "answer": "A recording of the heart's electricity."}
                                                        (also TRL's `prompt` and `completion`, Gemini's `contents`)
    sharegpt          {"conversations": [{"from": "human", "value": "What is an ECG?"},
                                         {"from": "gpt", "value": "A recording of the heart's electricity."}]}
    alpaca            {"instruction": "Say what this is.", "input": "ECG", "output": "A recording of the heart's electricity."}
                                                        (`input` and `history`, a list of [question, answer], are optional)
    summary           {"text": "A long report on sleep and shift work.", "summary": "Shift work shortens sleep."}
    dialogue          {"dialogue": "Doctor: What brings you?\\nPatient: A cough.", "note": "Cough.", "section": "Complaint"}
                                                        (`section` is optional: the part of the note that is asked for)
    classification    {"question": "Is this urgent or routine?", "text": "Chest pain since an hour.", "label": "urgent"}
    multiple_choice   {"question": "Which vessel brings blood to the heart?", "choices": ["vena cava", "aorta"],
                       "answer": 0}                     (the index of the right choice, counted from 0 unless `answer_base: 1`,
                                                        its letter or its text; choices may be an object letter -> text,
                                                        or stand in columns `A`, `B`, ... or `opa`, `opb`, ...)
    preference        {"prompt": "Is this mole harmless?", "chosen": "Have it seen by a doctor.", "rejected": "Yes."}
                                                        (each a text or a list of messages; a side may be the whole
                                                        conversation, and `prompt` is then not needed; also the texts of
                                                        hh-rlhf, and the rows of OpenAI and LLaMA-Factory)
    graded            {"question": "Is this mole harmless?",
                       "answers": [{"text": "Have it seen by a doctor.", "score": 4}, {"text": "Yes.", "score": 1}]}
    prompt            {"prompt": "How many mg are two tablets of 5 mg?", "answer": "10"}
                                                        (a text or a list of messages that ends with the user; `answer`, the right
                                                        one, and `choices`, which the prompt itself must name, are optional)

Every format may have `system`, which is said first where a row's own turns bring none, and `id` and `group`; an empty cell
is as none, but for an `id`. What is asked of a summary, a dialogue or a classification is put into words by
`rounds.data_prep.render`, in several phrasings. A row without `id` is named by a hash of its content, so that rows added later
change no name. `graded` makes pairs of a
better and a worse answer (a higher score is better), the widest difference first, up to `MAX_PAIRS` a question.

With `heldout_fraction`, a row belongs to split `heldout` when a hash of its first question says so: the same question
is on the same side in every file and format, with or without further turns. A row that cannot be read is counted in
both splits.
"""

import codecs
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

from rounds.data_prep import files, hub, render
from rounds.data_prep.controls import cleaned
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.records import Conversation, Message, Pair, Prompt, Question, Record, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source, _exam, _forms
from rounds.data_prep.sources._plain import label, numbered, said
from rounds.data_prep.turns import ask, identity, messages, normalised, preference, refuse_unlearnt, required, text, with_system, words

COLUMNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "question_answer": ("question", "answer"),
    "summary": ("text", "summary"),
    "dialogue": ("dialogue", "note"),
    "classification": ("question", "text", "label"),
    "multiple_choice": ("question", "choices", "answer"),
    "preference": ("prompt", "chosen", "rejected"),
    "graded": ("question", "answers"),
    "prompt": ("prompt",),
}
OPTIONAL = {
    "messages": ("system", "id", "group"),
    "sharegpt": ("system", "id", "group"),
    "alpaca": ("input", "history", "system", "id", "group"),
    "question_answer": ("system", "id", "group"),
    "summary": ("system", "id", "group"),
    "dialogue": ("section", "system", "id", "group"),
    "classification": ("system", "id", "group"),
    "multiple_choice": ("system", "id", "group"),
    "preference": ("system", "id", "group"),
    "graded": ("text", "score", "system", "id", "group"),
    "prompt": ("answer", "choices", "system", "id", "group"),
}
ASKED_IN = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": (files.TURNS,),
    "preference": ("chosen", "rejected", "prompt"),  # beside a whole conversation some sets keep but the last question
    "summary": ("text",),
    "dialogue": ("dialogue",),
    "classification": ("text",),
    "prompt": ("prompt",),
}
# Our choice: four answers of differing scores make six pairs; of longer lists more would let one question outweigh many.
MAX_PAIRS = 8


def check(use: SourceUse) -> None:
    """Raise `UserError` where the use of the file cannot be meant: no path, no format, an unknown column, no split."""
    if use.path is None:
        raise UserError("source 'file' needs `path:`, the file with your rows")
    if use.format is None:
        raise UserError(f"{use.path}: source 'file' needs `format:`, one of {', '.join(COLUMNS)}")
    known = (*COLUMNS[use.format], *OPTIONAL[use.format])
    for name in use.columns:
        if name not in known:
            raise UserError(f"{use.path}: `columns` names {name!r}, unknown to {use.format}: {nearest(name, known)}")
    if use.split == "heldout" and not use.heldout_fraction:
        raise UserError(f"{use.path}: split 'heldout' is empty unless `heldout_fraction` is above 0; 1.0 holds the whole file out")
    if use.split == "train" and use.heldout_fraction == 1:
        raise UserError(f"{use.path}: `heldout_fraction: 1.0` holds the whole file out: give it `split: heldout`")
    if use.encoding is not None:
        _check_encoding(use)
    if len(set(use.header)) < len(use.header):
        raise UserError(f"{use.path}: `header` names a column twice: {', '.join(use.header)}")
    if use.config is not None and _is_one_file(use.path):
        raise UserError(f"{use.path}: `config` names a configuration of a folder, and this is one file")
    if use.from_split is not None and _is_one_file(use.path):
        raise UserError(
            f"{use.path}: `from_split` names a split of a folder, and this is one file; `split: heldout` with `heldout_fraction` divides it"
        )


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split under our column names, with an id under `files.ID`; a graded row as a row for each pair."""
    check(use)
    path = Path(str(use.path))
    seen: dict[str, int] = {}
    # A required column that is not there costs every row; of these nobody would hear.
    unseen = {ours: theirs for ours, theirs in use.columns.items() if ours in (*OPTIONAL["alpaca"], "section")}
    any_read = False
    for raw in raw_rows(use):
        if isinstance(raw, RowError):
            yield raw
            continue
        any_read = True
        unseen = {ours: theirs for ours, theirs in unseen.items() if theirs not in raw}
        try:
            row = _formed(_named(cleaned(raw) if use.control_characters == "clean" else raw, use), use)
        except RowError as error:
            yield RowError(str(error), row=raw.get(files.ROW), file=raw.get(files.FILE))
            continue
        key = _first_question(row, use)
        if key is not None and use.heldout_fraction and _is_heldout(key, use) != (use.split == "heldout"):
            continue
        name = numbered(row.get("id"))
        row[files.ID] = _content_id(row, use, seen) if name is None else name
        if use.format == "graded":
            yield from _pairs(row, use)
        else:
            yield row
    for ours, theirs in unseen.items() if any_read else ():
        raise UserError(f"{path}: `columns` says that {ours!r} is {theirs!r} in the file, and no row has that column")


def reads(use: SourceUse, names: Collection[str]) -> Collection[str]:
    """Return the names, among those of a file's columns, that `rows` reads."""
    own = {*COLUMNS[str(use.format)], *OPTIONAL[str(use.format)], *use.columns.values()}
    own |= {"prompt", "completion", "contents", *_forms.SYSTEM_OF_GEMINI} if use.format == "messages" else set()
    return [name for name in names if name in own]


def raw_rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the file, or of the folder's files, under their own columns."""
    found = hub.local(
        Path(str(use.path)),
        split=use.from_split or "train",
        config=use.config,
        encoding=use.encoding,
        header=use.header,
        name_labels=True,
        must_have_config=True,
    )
    if use.format == "multiple_choice" and use.answer_base is None:
        return _exam.questioned(found, str(use.path), use.columns)
    return found


def to_record(row: Row, index: int, use: SourceUse) -> Record:
    """Convert one row that `rows` gave; raises `RowError` with the reasons that `rounds.data_prep.turns` lists."""
    named = {"id": identity(row[files.ID]), "source": "file", "group": _group(row)}
    if use.format == "messages":
        turns = messages(required(row, "messages"), "assistant")
        return Conversation(messages=with_system(turns, _system(row)), **named)
    if use.format == "sharegpt":
        turns = messages(required(row, "conversations"), "assistant")
        return Conversation(messages=with_system(turns, _system(row)), **named)
    if use.format == "alpaca":
        turns = row[files.TURNS]
        if turns is None or not turns[-2]["content"].strip():
            text(required(row, "instruction"), "instruction")
        _answer(row, "output")
        return Conversation(messages=with_system(messages(turns, "assistant"), _system(row)), **named)
    if use.format == "question_answer":
        answer = Message("assistant", _answer(row, "answer"))
        return Conversation(messages=(*_question(row), answer), **named)
    if use.format in _REQUESTS:
        asked, answer = _REQUESTS[use.format](row, named["id"], use.seed)
        return render.exchange("file", named["id"], asked, answer, system=_system(row), group=named["group"])
    if use.format == "multiple_choice":
        labels, choices = _exam.choices(row)
        answer = _exam.right(row, labels, choices, use.answer_base or 0)
        return Question(prompt=_question(row, choices), choices=choices, answer=answer, **named)
    if use.format == "graded":  # `_pairs` has made and checked the sides
        return Pair(prompt=_question(row), chosen=row["chosen"], rejected=row["rejected"], **named)
    if use.format == "prompt":
        return _prompt(row, named)
    sides = preference(row.get("prompt"), required(row, "chosen"), required(row, "rejected"))
    return Pair(**{**named, **sides, "prompt": with_system(sides["prompt"], _system(row))})


def _is_one_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _check_encoding(use: SourceUse) -> None:
    try:
        known = codecs.lookup(str(use.encoding))
        "a".encode(known.name)
    except (LookupError, ValueError):
        common = ", ".join(("utf-8", "utf-16", "cp1252", "latin-1", "cp1251", "gb18030", "shift_jis"))
        raise UserError(f"{use.path}: no encoding {use.encoding!r}; expected one by its name in Python, such as {common}") from None


def _named(raw: Row, use: SourceUse) -> dict[str, Any]:
    row = dict(raw)
    for ours, theirs in use.columns.items():
        row.pop(ours, None)
        if theirs in raw:
            row[ours] = raw[theirs]
    return row


def _formed(row: dict[str, Any], use: SourceUse) -> dict[str, Any]:
    """Return a row with its turns as `rounds.data_prep.turns` takes them."""
    if use.format == "messages":
        return dict(_forms.talk(row))
    if use.format == "sharegpt":
        return {**row, "conversations": _forms.turns(row["conversations"])} if "conversations" in row else row
    if use.format == "alpaca":
        return {**row, files.TURNS: _forms.alpaca(row)}
    if use.format == "multiple_choice":
        return _exam.gathered(row)
    if use.format == "prompt" and "prompt" in row:
        return {**row, "prompt": _forms.side(row["prompt"])}
    return dict(_forms.pair(row)) if use.format == "preference" else row


def _is_heldout(question: str, use: SourceUse) -> bool:
    return stable_hash("heldout", normalised(question)) / 2**64 < use.heldout_fraction


def _first_question(row: Row, use: SourceUse) -> str | None:
    """Return the first text that the user says in a row, before any check; None where there is none to find."""
    for column in ASKED_IN.get(str(use.format), ("question",)):
        value = row.get(column)
        if isinstance(value, str) and column not in ("chosen", "rejected"):
            return value
        for turn in value if isinstance(value, list) else ():
            if isinstance(turn, Mapping) and turn.get("role") == "user":
                return words(turn.get("content"))
    return None


def _content_id(row: Row, use: SourceUse, seen: dict[str, int]) -> str:
    columns = (*COLUMNS[str(use.format)], *(("input", "history") if use.format == "alpaca" else ()), "system")
    content = [row.get(column) for column in columns]
    name = f"{stable_hash(json.dumps(content, sort_keys=True, default=str)):016x}"
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"


def _given(row: Row, column: str) -> Any:
    """Return an optional column's value; None where there is none, as an empty cell of CSV says."""
    value = row.get(column)
    return None if isinstance(value, str) and not value.strip() else value


def _group(row: Row) -> str:
    group = numbered(_given(row, "group"))
    return "" if group is None else identity(group, "group")


def _question(row: Row, choices: tuple[str, ...] = ()) -> tuple[Message, ...]:
    question = text(required(row, "question"), "question")
    return ask(render.with_choices(question, choices) if choices else question, _system(row))


def _system(row: Row) -> str | None:
    system = _given(row, "system")
    return None if system is None else text(system, "system")


def _prompt(row: Row, named: dict[str, str]) -> Prompt:
    asked = required(row, "prompt")
    turns = ask(text(asked, "prompt")) if isinstance(asked, str) else messages(asked, "user")
    has_answer, choices = _given(row, "answer") is not None, ()
    answer = _answer(row, "answer") if has_answer else None
    if _given(row, "choices") is not None:
        labels, choices = _exam.choices(row)
        answer = choices[_exam.right(row, labels, choices, 0)] if has_answer else None
    return Prompt(prompt=with_system(turns, _system(row)), answer=answer, choices=choices, **named)


def _answer(row: Row, column: str) -> str:
    """Return an answer's text, also of one that is a number."""
    return text(said(required(row, column)), column)


def _summary(row: Row, name: str, seed: int) -> tuple[str, str]:
    whole = text(required(row, "text"), "text")
    return render.request("summary", name, seed=seed, text=whole), _answer(row, "summary")


def _dialogue(row: Row, name: str, seed: int) -> tuple[str, str]:
    spoken, note = text(required(row, "dialogue"), "dialogue"), _answer(row, "note")
    section = _given(row, "section")
    if section is None:
        return render.request("note", name, seed=seed, text=spoken), note
    return render.request("note_section", name, seed=seed, section=text(section, "section"), text=spoken), note


def _classification(row: Row, name: str, seed: int) -> tuple[str, str]:
    question, whole = text(required(row, "question"), "question"), text(required(row, "text"), "text")
    asked = render.request("classification", name, seed=seed, question=question, text=whole)
    return asked, text(label(required(row, "label")), "label")


_REQUESTS = {"summary": _summary, "dialogue": _dialogue, "classification": _classification}


def _pairs(row: dict[str, Any], use: SourceUse) -> Iterator[Row | RowError]:
    try:
        name = identity(row[files.ID])
        _question(row)
        answers, dropped = _graded_answers(row, use)
        pairs = [
            (a, b) if answers[a][1] > answers[b][1] else (b, a)
            for a, b in combinations(answers, 2)
            if answers[a][1] != answers[b][1] and answers[a][0].strip() != answers[b][0].strip()
        ]
        if not pairs and dropped:
            raise dropped[0]
        if not pairs:
            raise RowError("no_differing_scores", bad=False)
    except RowError as error:
        yield RowError(str(error), bad=error.bad, row=row.get(files.ROW), file=row.get(files.FILE))
        return
    # One answer that cannot be used costs itself, not the question: it is counted, and not held against the file.
    for error in dropped:
        yield RowError(str(error), bad=False, row=row.get(files.ROW), file=row.get(files.FILE))
    pairs.sort(key=lambda pair: (answers[pair[1]][1] - answers[pair[0]][1], pair))
    for better, worse in pairs[:MAX_PAIRS]:
        chosen, rejected = answers[better][0], answers[worse][0]
        group = name if _given(row, "group") is None else row["group"]
        yield {**row, files.ID: f"{name}:{better}-{worse}", "group": group, "chosen": chosen, "rejected": rejected}


def _answers(row: Row) -> list[Any]:
    answers = _forms.rows_of(_forms.from_text(required(row, "answers")))
    if not isinstance(answers, list):
        raise RowError("answers_not_a_list")
    return answers


def _graded_answers(row: Row, use: SourceUse) -> tuple[dict[int, tuple[str, float]], list[RowError]]:
    """Return place -> text and score of the answers that have both, and the reasons of the others."""
    answers: dict[int, tuple[str, float]] = {}
    dropped: list[RowError] = []
    for place, answer in enumerate(_answers(row)):
        try:
            answers[place] = _graded(answer, use)
        except RowError as error:
            dropped.append(error)
    return answers, dropped


def _graded(answer: Any, use: SourceUse) -> tuple[str, float]:
    if not isinstance(answer, Mapping):
        raise RowError("answer_not_an_object")
    row = _named(answer, use)
    refuse_unlearnt(row)
    score = required(row, "score")
    if isinstance(score, Decimal):
        score = float(score)
    if not isinstance(score, int | float) or isinstance(score, bool) or not abs(score) <= sys.float_info.max:
        raise RowError("score_not_a_number")
    return _answer(row, "text"), float(score)


SOURCE = Source(
    name="file",
    description="your own rows: JSONL, JSON, CSV, parquet or xlsx, in one of eleven formats",
    licence="",
    splits={"train": "conversation", "heldout": "conversation"},
    rows=rows,
    to_record=to_record,
    evaluation_only=("heldout",),
    reads_by_format=reads,
    kind_by_format={
        "messages": "conversation",
        "sharegpt": "conversation",
        "alpaca": "conversation",
        "question_answer": "conversation",
        "summary": "conversation",
        "dialogue": "conversation",
        "classification": "conversation",
        "multiple_choice": "question",
        "preference": "pair",
        "graded": "pair",
        "prompt": "prompt",
    },
    columns_by_format=COLUMNS,
    check_use=check,
    version=5,
)
