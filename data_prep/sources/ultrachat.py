"""UltraChat 200k: general dialogues of several turns between two ChatGPT models, filtered for the Zephyr recipe.

In: hub `HuggingFaceH4/ultrachat_200k`, splits `train_sft` (207,865 rows; Med42-v2 had 50,953: see `max_rows`) and
`test_sft` (23,110, evaluation only). Out: conversations. Licence: MIT.
https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k
Example row, of our own:

    {"prompt": "Name a citrus fruit.", "prompt_id": "5f1d", "messages": [{"role": "user", "content": "Name a citrus
     fruit."}, {"role": "assistant", "content": "A lemon."}]}

`train_gen` and `test_gen` end with the user and are for generation; they are not offered. The commit is the one that
many public projects pin, with columns and counts as a stored copy of the hub's commit page shows them.
"""

from collections.abc import Iterator

from rounds.data_prep import hub
from rounds.data_prep.records import Conversation
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.turns import identity, messages, required

REPOSITORY = "HuggingFaceH4/ultrachat_200k"
REVISION = "8049631c405ae6576f93f445c6b8166f76f5505a"
FILES = {split: (f"data/{split}-*",) for split in ("train_sft", "test_sft")}


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split, of whose files alone the repository's are fetched."""
    return hub.rows(use, REPOSITORY, revision=REVISION, split=use.split, patterns=FILES[use.split])


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Take the messages as they are; raises `RowError` with the reasons of `turns.messages`."""
    name = identity(required(row, "prompt_id"), "prompt_id")
    return Conversation(name, "ultrachat", messages(required(row, "messages"), "assistant"))


SOURCE = Source(
    name="ultrachat",
    description="general dialogues between two chat models, as the Zephyr recipe uses them",
    licence="mit",
    splits={"train_sft": "conversation", "test_sft": "conversation"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    files=tuple(pattern for patterns in FILES.values() for pattern in patterns),
    columns=("prompt_id", "messages"),
    evaluation_only=("test_sft",),
    sizes={"train_sft": 207_865, "test_sft": 23_110},
    mean_tokens={"train_sft": (1000, 300)},
)
