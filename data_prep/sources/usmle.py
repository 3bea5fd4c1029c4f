"""USMLE sample exam and self-assessment: the official practice questions, from the files that you have.

In: `path`, a file or a folder; there is no copy on the hub that may be read, since the questions are not free. Two layouts: rows of
JSON, JSONL, CSV or parquet with a question, its options and the right letter; or the folder of medAlpaca (Han et al. 2023):
`step1.json` (a list), `step1_solutions.json` (number -> letter), and so on, with `question_with_images.json`. Split `test`, for
evaluation only. Out: `Question`, with `sample` or `self_assessment` as `group`. Licence: other (that of the exam's owners).
https://www.usmle.org/exam-resources
Example row, of our own, and the same in medAlpaca's form:

    {"question": "A 30-year-old has a stiff neck and fever. Next step?", "options": {"A": "Lumbar puncture", "B": "Skin biopsy"},
     "answer": "A", "exam": "sample"}
    {"no": 1, "question": "A 30-year-old has a stiff neck and fever. Next step?", "options": {"A": "Lumbar puncture", "B": "Skin biopsy"}}

Which exam a row is from is said by its column `exam` (or `group`), else by the name of its file or folder: one that holds `sample`, or
`self`. A row of which nothing says so is dropped, and no exam is guessed. Questions that ask about a picture are left out, as medAlpaca
does: those that `question_with_images.json` lists by their number.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rounds.data_prep import files, hub
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Question, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source, _exam
from rounds.data_prep.sources._questions import closed
from rounds.data_prep.turns import identity, required, text

EXAMS = {"self": "self_assessment", "sample": "sample"}
"""What the name of a file or a folder holds, and the exam that it says."""
SOLUTIONS, PICTURES = "_solutions.json", "question_with_images.json"
EXAM, PICTURE = "#exam", "#picture"
"""What `rows` adds to a row: the exam that its file's name says, and whether it is listed as one with a picture."""


def check(use: SourceUse) -> None:
    """Raise `UserError` where no path is given: the questions are not free."""
    if use.path is None:
        raise UserError(
            "source 'usmle' needs `path:`, a file or folder with your copy of the sample exam and the self-assessment: the questions are "
            "not free, so they are fetched from nowhere. data_prep/sources/usmle.py says how the rows may look"
        )


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of a file, or of all files of a folder, each with the exam that the names say."""
    check(use)
    path = Path(str(use.path))
    if not path.is_dir() or hub.is_saved(path):
        yield from _told(hub.local(path, split=use.split), _named(path.name))
        return
    stepped = sorted(each.with_name(each.name.removesuffix(SOLUTIONS) + ".json") for each in path.rglob(f"*{SOLUTIONS}"))
    own = [each for each in path.rglob("*") if each.is_file() and files.is_data(each)]
    plain = [each for each in own if each not in stepped and not each.name.endswith((SOLUTIONS, PICTURES))]
    if not stepped and not plain:
        raise UserError(f"{path}: no file of rows in this folder; expected step1.json with step1{SOLUTIONS}, or files of rows")
    for each in (*stepped, *sorted(plain)):
        inside = each.relative_to(path).as_posix()
        found = files.read(each, name=inside)
        yield from _told(_solved(found, each) if each in stepped else found, _named(inside) or _named(path.name))


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask the question; raises `RowError`: `asks_about_a_picture` (not bad), `exam_not_told`, and those of `closed` and of source
    `file`'s `multiple_choice`.
    """
    if row.get(PICTURE):
        raise RowError("asks_about_a_picture", bad=False)
    exam = _exam_of(row)
    given = row if "choices" in row or "options" not in row else {**row, "choices": row["options"]}
    labels, choices = _exam.choices(_exam.gathered(given))
    letter = next((row[name] for name in ("answer_idx", "answer") if row.get(name) is not None), None)
    answer = _exam.right({"answer": letter}, labels, choices, 0)
    question = text(required(row, "question"), "question")
    return closed("usmle", _name(row, exam, question, choices), question, choices, answer, group=exam)


def _exam_of(row: Row) -> str:
    for name in ("exam", "group", EXAM):
        if exam := _named(str(row.get(name))):
            return exam
    raise RowError("exam_not_told")


def _name(row: Row, exam: str, question: str, choices: tuple[str, ...]) -> str:
    if row.get("id") is not None:
        return f"{exam}/{identity(row['id'])}"
    return f"{exam}/{stable_hash(question, *choices):016x}"


def _named(name: str) -> str:
    return next((exam for sign, exam in EXAMS.items() if sign in name.lower()), "")


def _told(found: Iterator[Row | RowError], exam: str) -> Iterator[Row | RowError]:
    for row in found:
        yield row if isinstance(row, RowError) else {**row, EXAM: exam}


def _solved(found: Iterator[Row | RowError], step: Path) -> Iterator[Row | RowError]:
    """Yield the rows of one step with their right letters, and whether they ask about a picture."""
    letters = _object(step.with_name(step.stem + SOLUTIONS))
    pictures = _object(step.with_name(PICTURES)) if step.with_name(PICTURES).is_file() else {}
    listed = pictures.get(step.stem)
    with_picture = {str(number) for number in listed} if isinstance(listed, list) else set()
    for row in found:
        if isinstance(row, RowError):
            yield row
            continue
        number = str(row.get("no"))
        yield {**row, "answer": letters.get(number), "id": f"{step.stem}/{number}", PICTURE: number in with_picture}


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected one object of JSON, as medAlpaca has it; found {type(value).__name__}")
    return value


SOURCE = Source(
    name="usmle",
    description="official practice questions of the USMLE, from files of your own",
    licence="other",
    splits={"test": "question"},
    rows=rows,
    to_record=to_record,
    origin="your own files",
    columns=("question", "options", "answer"),
    evaluation_only=("test",),
    check_use=check,
)
