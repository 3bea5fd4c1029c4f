"""MEDIQA answer summarisation for medAlpaca: consumers' health questions, documents that answer them, and the answer.

In: hub `medalpaca/medical_meadow_mediqa`, split `train` (2,208 rows). Out: conversations. Licence: the card names none.
The set behind it is MEDIQA-AnS (https://osf.io/fyg46).
https://huggingface.co/datasets/medalpaca/medical_meadow_mediqa
Example row, of our own:

    {"instruction": "Answer the input medical question based on the relevant context",
     "input": "Can I take two iron pills a day?\\nContext: Iron pills are mostly taken once a day.",
     "output": "Mostly one a day is enough; ask your doctor before you take more."}

The commit was read on a stored copy of the hub's page of files, the columns in public code. How `input` joins question
and context could not be seen, so it is kept as it is, after the row's own instruction.
"""

from rounds.data_prep import hub, render
from rounds.data_prep.records import Conversation
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source, _alpaca
from rounds.data_prep.turns import text

REPOSITORY = "medalpaca/medical_meadow_mediqa"
REVISION = "73472b260aa9c3216de8fd1c6a9e2e64a9a0b984"


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Ask the row's instruction about its input."""
    name, given, answer = _alpaca.parts(row)
    instruction = text(row.get("instruction"), "instruction")
    asked = render.request("task", name, seed=use.seed, question=instruction, text=given)
    return render.exchange("mediqa", name, asked, answer)


SOURCE = Source(
    name="mediqa",
    description="consumers' health questions answered from documents",
    licence="",
    splits={"train": "conversation"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=_alpaca.COLUMNS,
    sizes={"train": 2_208},
)
