"""MedMCQA: four-option questions from Indian medical entrance exams (AIIMS and NEET PG), 21 subjects.

In: hub `openlifescienceai/medmcqa`, splits `train` (182,822 rows) and `validation` (4,183, evaluation only: it is what
harnesses score, because the 6,150 rows of `test` have no public labels and are not offered here); or a file of the
GitHub repository, or a folder of them. Out: `Question`. Licence: Apache-2.0 (GitHub: MIT). https://github.com/medmcqa/medmcqa
Example row, of our own:

    {"id": "5f1d", "question": "Which vitamin prevents scurvy?", "opa": "Vitamin A", "opb": "Vitamin B1",
     "opc": "Vitamin C", "opd": "Vitamin D", "cop": 2, "choice_type": "single", "exp": "Scurvy is lack of vitamin C.",
     "subject_name": "Biochemistry", "topic_name": "Vitamins"}

The trap: `cop`, the right option, counts from 0 on the hub and from 1 in the GitHub files. In a local copy it is told from
the values themselves, never from the file's name. `exp` is left out: half of the rows have none, and many are OCR text.
Commit, splits and row counts were read on a stored copy of the hub's commit page.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rounds.data_prep import hub
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Question
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.sources._questions import closed
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "openlifescienceai/medmcqa"
REVISION = "91c6572c454088bf71b679ad90aa8dffcd0d5868"
OPTIONS = ("opa", "opb", "opc", "opd")
FIRST = "#first_option"


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split, those of a local copy with the number of its first option under `FIRST`."""
    first = None if use.path is None else _first_option(_rows(use), use.path, must_tell=Path(use.path).is_file())
    for row in _rows(use):
        yield row if first is None or isinstance(row, RowError) else {**row, FIRST: first}


def _rows(use: SourceUse) -> Iterator[Row | RowError]:
    return hub.rows(use, REPOSITORY, revision=REVISION, split=use.split)


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask the question; raises `RowError`: `no_label` for a row of the hidden test set, and those of `closed`."""
    name = identity(required(row, "id"))
    question = text(required(row, "question"), "question")
    answer = required(row, "cop")
    if answer == -1:
        raise RowError("no_label", bad=False)
    right = answer - row.get(FIRST, 0) if isinstance(answer, int) else answer
    group = row.get("subject_name")
    choices = [required(row, option) for option in OPTIONS]
    return closed("medmcqa", name, question, choices, right, group=group if isinstance(group, str) else "")


def _first_option(rows: Iterable[Row | RowError], path: str, must_tell: bool) -> int:
    """Tell whether rows count the right option from 0 or from 1; where they need not tell, from 0 unless one is 4 and none is 0."""
    found = {row.get("cop") for row in rows if not isinstance(row, RowError) and isinstance(row.get("cop"), int)}
    if 4 in found and 0 not in found:
        return 1
    if not must_tell or (0 in found and 4 not in found):
        return 0
    raise UserError(f"{path}: column `cop` must count the options from 0 to 3 or from 1 to 4; its rows do not tell which")


SOURCE = Source(
    name="medmcqa",
    description="four-option questions from Indian medical entrance exams",
    licence="apache-2.0",
    splits={"train": "question", "validation": "question"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("id", "question", *OPTIONS, "cop"),
    evaluation_only=("validation",),
    mean_tokens={"train": (66, 7)},
    sizes={"train": 182_822, "validation": 4_183},
)
