"""SciQ: crowd-written school science questions (physics, chemistry, biology), each with three wrong answers.

In: hub `allenai/sciq`, splits `train` (11,679 rows), `validation` and `test` (1,000 each, `test` evaluation only). Out:
`Question`. Licence: CC BY-NC 3.0: not for commercial use. https://huggingface.co/datasets/allenai/sciq
Example row, of our own:

    {"question": "What do plants give off in sunlight?", "correct_answer": "oxygen", "distractor1": "helium",
     "distractor2": "methane", "distractor3": "neon", "support": "Photosynthesis sets oxygen free."}

`support`, the passage, is left out: the answer mostly stands in it word for word. The set has no ids and always keeps
the right answer apart, so a hash of the row names it and orders its choices. Commit, columns and counts were read on a
stored copy of the hub's commit page.
"""

from rounds.data_prep import hub
from rounds.data_prep.records import Question, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source
from rounds.data_prep.sources._questions import closed
from rounds.data_prep.turns import required, text

REPOSITORY = "allenai/sciq"
REVISION = "2c94ad3e1aafab77146f384e23536f97a4849815"
CHOICES = ("correct_answer", "distractor1", "distractor2", "distractor3")


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask the question without its passage; raises `RowError` with the reasons of `closed`."""
    question = text(required(row, "question"), "question")
    texts = [text(required(row, column), column) for column in CHOICES]
    name = f"{stable_hash(question, *texts):016x}"
    order = sorted(range(len(texts)), key=lambda place: stable_hash("choice", name, texts[place]))
    return closed("sciq", name, question, [texts[place] for place in order], order.index(0))


SOURCE = Source(
    name="sciq",
    description="school science questions with four choices",
    licence="cc-by-nc-3.0",
    splits={"train": "question", "validation": "question", "test": "question"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("question", *CHOICES),
    evaluation_only=("test",),
    sizes={"train": 11_679, "validation": 1_000, "test": 1_000},
)
