"""OpenGPT by CogStack: health questions, tasks and dialogues that GPT made from NHS pages, in the ShareGPT dialect.

In: hub `openchat/cogstack-opengpt-sharegpt`, split `train` (31,532 rows; Med42-v2 had 66,026 from the first release).
Out: conversations. Licence: Apache-2.0. https://huggingface.co/datasets/openchat/cogstack-opengpt-sharegpt
Example row, of our own:

    {"id": "nhs_qa_1", "conversations": [{"from": "human", "value": "What is a stye?"},
     {"from": "gpt", "value": "A small, painful lump on the edge of the eyelid. See https://www.nhs.uk"}]}

The commit was read on a stored copy of the hub's page of files, the columns in public code that converts the set.
"""

from rounds.data_prep import hub
from rounds.data_prep.records import Conversation, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source
from rounds.data_prep.sources._chat import from_sharegpt
from rounds.data_prep.turns import required

REPOSITORY = "openchat/cogstack-opengpt-sharegpt"
REVISION = "6d1c40c8a84c6b925318cdfdb26029a595345098"


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Take the turns as they are, named by their content: ids repeat between the parts of the first release."""
    turns = from_sharegpt(required(row, "conversations"))
    name = f"{stable_hash(*((turn.role, turn.content) for turn in turns)):016x}"
    return Conversation(name, "opengpt", turns)


SOURCE = Source(
    name="opengpt",
    description="health questions, tasks and dialogues made by GPT from NHS pages",
    licence="apache-2.0",
    splits={"train": "conversation"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("conversations",),
    sizes={"train": 31_532},
)
