"""MedQA (USMLE), four options: vignettes from United States medical licensing exams.

In: hub `GBaker/MedQA-USMLE-4-options-hf`, splits `train` (10,178 rows), `validation` (1,272) and `test` (1,273,
evaluation only); or, as a local file, rows with `question`, `options` and `answer_idx`, as the original set and mediQ
(with `context`, the vignette's sentences) have them. Out: `Question`. Licence: CC BY-SA 4.0 as this hub set says (the
original is MIT). https://github.com/jind11/MedQA
Example row, of our own, and the same in mediQ's form:

    {"id": "train-00000", "sent1": "A 30-year-old has a stiff neck and fever. What is the next step?", "sent2": "",
     "ending0": "Lumbar puncture", "ending1": "Colonoscopy", "ending2": "Spirometry", "ending3": "Skin biopsy",
     "label": 0}
    {"id": 0, "context": ["A 30-year-old has a stiff neck and fever."], "question": "What is the next step?",
     "options": {"A": "Lumbar puncture", "B": "Colonoscopy", "C": "Spirometry", "D": "Skin biopsy"}, "answer_idx": "A"}

The commit was read on a stored copy of the hub's page of files. EleutherAI's harness scores the same set.
"""

from rounds.data_prep import hub
from rounds.data_prep.records import Question, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.sources._questions import closed, lettered
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "GBaker/MedQA-USMLE-4-options-hf"
REVISION = "17af9355ef89fba60de966eabaeba797c695f86e"
ENDINGS = ("ending0", "ending1", "ending2", "ending3")


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask the vignette's question; raises `RowError` with the reasons of `closed` and `lettered`."""
    if "options" in row:
        question = _vignette(row)
        choices, answer = lettered(required(row, "options"), required(row, "answer_idx"))
    else:
        question = text(required(row, "sent1"), "sent1")
        choices, answer = [required(row, ending) for ending in ENDINGS], required(row, "label")
    given = row.get("id")
    name = identity(given) if given is not None else f"{stable_hash(question, *choices):016x}"
    return closed("medqa", name, question, choices, answer)


def _vignette(row: Row) -> str:
    question, context = text(required(row, "question"), "question"), row.get("context")
    if context is None:
        return question
    if not isinstance(context, list):
        raise RowError("context_not_a_list")
    return " ".join([*(text(sentence, "context").strip() for sentence in context), question.strip()])


SOURCE = Source(
    name="medqa",
    description="four-option vignettes from United States medical licensing exams",
    licence="cc-by-sa-4.0",
    splits={"train": "question", "validation": "question", "test": "question"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("id", "sent1", *ENDINGS, "label"),
    evaluation_only=("test",),
    mean_tokens={"train": (216, 8)},
    sizes={"train": 10_178, "validation": 1_272, "test": 1_273},
)
