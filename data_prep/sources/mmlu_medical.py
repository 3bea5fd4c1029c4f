"""MMLU, the 13 subjects that Med42-v2 counts as medical: exam questions from high school to the professions.

In: hub `cais/mmlu`, one configuration a subject, splits `dev` (5 rows a subject), `validation`, and `test` (evaluation
only); or the files of the first release, `anatomy_test.csv` and so on, without a header: one of them, or a folder with
them. Out: `Question`, with the subject as `group`. Licence: MIT. https://github.com/hendrycks/test
Example row, of our own, and the same in the first release's form:

    {"question": "Which bone is in the thigh?", "subject": "anatomy", "choices": ["Femur", "Ulna", "Radius", "Tibia"],
     "answer": 0}
    Which bone is in the thigh?,Femur,Ulna,Radius,Tibia,A

Evaluation scores the six subjects anatomy, clinical knowledge, college biology, college medicine, medical genetics and
professional medicine. Rows are named by subject, split and place, which are the same in both forms. The commit is the
one that many public projects pin.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rounds.data_prep import files, hub
from rounds.data_prep.compressed import stem, suffix
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Question
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.sources._questions import closed, lettered
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "cais/mmlu"
REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "high_school_biology",
    "high_school_psychology",
    "human_aging",
    "human_sexuality",
    "medical_genetics",
    "nutrition",
    "professional_medicine",
    "professional_psychology",
    "virology",
)
FILE_ENDINGS = {"test": "_test.csv", "validation": "_val.csv", "dev": "_dev.csv"}
FILES = tuple(f"{subject}/*" for subject in SUBJECTS)
HEADER = ("question", "A", "B", "C", "D", "answer")


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of every subject, each with its `subject` and its place among the subject's rows."""
    path = Path(use.path) if use.path is not None else None
    if path is not None and (suffix(path) == ".csv" or _csv_files(path, use)):
        yield from _first_release(path, use)
    elif path is not None and (path.is_file() or hub.is_saved(path)):
        yield from _placed(hub.local(path, split=use.split))
    else:
        root = path or hub.download(REPOSITORY, use.revision or REVISION, FILES)
        for subject in SUBJECTS:
            # Not through `datasets`, which takes `dev-*` for the validation split.
            for each in files.find(root, (f"{subject}/{use.split}-*",)):
                yield from _placed(files.read(each), subject)


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask the question; raises `RowError`: `not_a_medical_subject` (not bad) and those of `closed` and `lettered`."""
    subject = text(required(row, "subject"), "subject")
    if subject not in SUBJECTS:
        raise RowError("not_a_medical_subject", bad=False)
    question, answer = text(required(row, "question"), "question"), required(row, "answer")
    choices: Any = row.get("choices")
    if "A" in row:
        choices, answer = lettered({letter: row[letter] for letter in "ABCD" if letter in row}, answer)
    if not isinstance(choices, list):
        raise RowError("choices_not_a_list")
    name = f"{subject}/{use.split}/{identity(required(row, files.ROW), 'row')}"
    return closed("mmlu_medical", name, question, choices, answer, group=subject)


def _csv_files(folder: Path, use: SourceUse) -> list[Path]:
    names = [f"{subject}{FILE_ENDINGS[use.split]}" for subject in SUBJECTS]
    return files.plain_first(path for path in folder.rglob("*.csv*") if suffix(path) == ".csv" and f"{stem(path)}.csv" in names)


def _first_release(path: Path, use: SourceUse) -> Iterator[Row | RowError]:
    ending = FILE_ENDINGS[use.split]
    for each in _csv_files(path, use) if path.is_dir() else [path]:
        subject = f"{stem(each)}.csv".removesuffix(ending)
        if subject not in SUBJECTS:
            raise UserError(f"{each}: expected a file such as anatomy{ending} for split {use.split!r}")
        for row in files.read(each, header=HEADER):
            yield row if isinstance(row, RowError) else {**row, "subject": subject}


def _placed(subject_rows: Iterator[Row | RowError], subject: str | None = None) -> Iterator[Row | RowError]:
    places: dict[Any, int] = {}
    for row in subject_rows:
        if isinstance(row, RowError):
            yield row
            continue
        named = subject or row.get("subject")
        places[str(named)] = places.get(str(named), 0) + 1
        yield {**row, "subject": named, files.ROW: places[str(named)]}


SOURCE = Source(
    name="mmlu_medical",
    description="exam questions of the 13 medical subjects of MMLU",
    licence="mit",
    splits={"dev": "question", "validation": "question", "test": "question"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    files=FILES,
    columns=("question", "subject", "choices", "answer"),
    evaluation_only=("test",),
    mean_tokens={"validation": (121, 9)},
    sizes={"dev": 65, "validation": 370, "test": 3_382},
)
