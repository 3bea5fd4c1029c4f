"""Medical flashcards of the Anki medical curriculum, turned into questions and answers by GPT-3.5 for medAlpaca.

In: hub `medalpaca/medical_meadow_medical_flashcards`, split `train` (33,955 rows). Out: conversations. Licence: "cc",
as the card says, without naming which Creative Commons licence.
https://huggingface.co/datasets/medalpaca/medical_meadow_medical_flashcards
Example row, of our own:

    {"instruction": "Answer this question truthfully", "input": "Which nerve moves the diaphragm?",
     "output": "The phrenic nerve moves the diaphragm."}

`instruction` is the same in every row and is left out. The commit is the one that public projects pin; a stored copy of
the hub's list of commits shows it as the last.
"""

from rounds.data_prep import hub, render
from rounds.data_prep.records import Conversation
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source, _alpaca

REPOSITORY = "medalpaca/medical_meadow_medical_flashcards"
REVISION = "7597b32036d67c731cb91bae4f49717fcfe5d5f0"


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Ask the card's front and answer with its back."""
    name, question, answer = _alpaca.parts(row)
    asked = render.request("answer", name, seed=use.seed, question=question)
    return render.exchange("medical_flashcards", name, asked, answer)


SOURCE = Source(
    name="medical_flashcards",
    description="questions and short answers made from medical students' flashcards",
    licence="cc",
    splits={"train": "conversation"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=_alpaca.COLUMNS,
    sizes={"train": 33_955},
)
