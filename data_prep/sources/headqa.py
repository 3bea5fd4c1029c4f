"""HEAD-QA in English: questions from exams for specialised posts in the Spanish health system.

In: hub `EleutherAI/headqa`, configuration `en`, splits `train` (2,657 rows), `validation` (1,366) and `test` (2,742,
evaluation only). Out: `Question`. Licence: MIT (the set's authors; this copy's card says only "other").
https://github.com/aghie/head-qa
Example row, of our own:

    {"name": "Cuaderno_2013_1_B", "year": "2013", "category": "biology", "qid": 1, "qtext": "Which organ makes bile?",
     "ra": 2, "answers": [{"aid": 1, "atext": "The spleen."}, {"aid": 2, "atext": "The liver."}]}

`ra` names the right answer by its `aid`, not by its place. Rows that ask about a picture are left out. The set's first
home, `dvilares/head_qa`, holds code instead of rows, which is never run here. Translated from Spanish by machine, so
some wording is odd. The commit was read on a stored copy of the hub's page of files.
"""

from collections.abc import Mapping
from typing import Any

from rounds.data_prep import hub
from rounds.data_prep.records import Question
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.sources._questions import closed
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "EleutherAI/headqa"
REVISION = "593a44375d0a7faa4f52e32c14be9c196b905e90"


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask the question; raises `RowError`: `asks_about_a_picture`, `answers_not_a_list`, and those of `closed`."""
    name = f"{identity(required(row, 'name'), 'name')}/{identity(required(row, 'qid'), 'qid')}"
    if row.get("image"):
        raise RowError("asks_about_a_picture", bad=False)
    question = text(required(row, "qtext"), "qtext")
    answers = required(row, "answers")
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        raise RowError("answers_not_a_list")
    category = row.get("category")
    right = _place(answers, required(row, "ra"))
    texts = [answer.get("atext") for answer in answers]
    return closed("headqa", name, question, texts, right, group=category if isinstance(category, str) else "")


def _place(answers: list[Any], right: Any) -> int:
    # The GitHub files spell both numbers as text.
    places = [place for place, answer in enumerate(answers) if str(answer.get("aid")) == str(right)]
    return places[0] if places else -1


SOURCE = Source(
    name="headqa",
    description="questions from Spanish exams for health professions, in English",
    licence="mit",
    splits={"train": "question", "validation": "question", "test": "question"},
    rows=hub.reader(REPOSITORY, REVISION, config="en"),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("name", "qid", "qtext", "ra", "answers"),
    evaluation_only=("test",),
    sizes={"train": 2_657, "validation": 1_366, "test": 2_742},
)
