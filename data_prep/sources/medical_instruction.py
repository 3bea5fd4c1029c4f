"""Medical-Instruction-120k: patients' questions and an assistant's answers, several turns in one text.

In: hub `Mohammed-Altaf/medical-instruction-120k`, splits `train` (about 107,000 rows; Med42-v2 had 120,000) and `test`
(5,610, evaluation only). Out: conversations. Licence: MIT.
https://huggingface.co/datasets/Mohammed-Altaf/medical-instruction-120k
Example row, of our own:

    {"Conversation": "The conversation between human and AI assistant.\\n[|Human|] Is a cold caught from cold air?
     \\n[|AI|] No, from viruses.\\n[|Human|]"}

What stands before the first `[|Human|]` is a frame, and a last `[|Human|]` without words ends the text: both are left
out. The commit was read on a stored copy of the hub's page of files, column and markers in several public projects that
read the set; a row itself could not be seen.
"""

import re

from rounds.data_prep import hub
from rounds.data_prep.records import Conversation, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.turns import messages, required, text

REPOSITORY = "Mohammed-Altaf/medical-instruction-120k"
REVISION = "a46c0e0a93402489f5fdd1f0da744635b1b4f20c"
MARKER = re.compile(r"\[\|(Human|AI)\|\]:?")
ROLES = {"Human": "user", "AI": "assistant"}


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Take the text apart at its markers; raises `RowError`: `no_markers` and the reasons of `turns.messages`."""
    _, *pieces = MARKER.split(text(required(row, "Conversation"), "conversation"))
    if not pieces:
        raise RowError("no_markers")
    spoken = [(ROLES[who], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
    if spoken[-1] == ("user", ""):
        spoken.pop()
    turns = messages([{"role": role, "content": said} for role, said in spoken], "assistant")
    name = f"{stable_hash(*((turn.role, turn.content) for turn in turns)):016x}"
    return Conversation(name, "medical_instruction", turns)


SOURCE = Source(
    name="medical_instruction",
    description="patients' questions answered by an assistant, over one or more turns",
    licence="mit",
    splits={"train": "conversation", "test": "conversation"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("Conversation",),
    evaluation_only=("test",),
    sizes={"train": 107_000, "test": 5_610},
)
