"""SlimOrca: GPT-4's answers to tasks of the FLAN collection, those that agree with the human answers.

In: hub `Open-Orca/SlimOrca` (517,982 rows) and, for the tag, `Open-Orca/OpenOrca`. Splits by the part of FLAN that a
task is from: `t0`, `flan`, `cot` (Med42-v2 lists 109,235, 109,169 and 74,172 rows), and `train`, all of them. Out:
conversations. Licence: MIT. https://huggingface.co/datasets/Open-Orca/SlimOrca
Example row, of our own, and the row of OpenOrca that tells its tag:

    {"conversations": [{"from": "system", "value": "You are a helpful assistant.", "weight": null}, {"from": "human",
     "value": "Name a citrus fruit.", "weight": 0.0}, {"from": "gpt", "value": "A lemon.", "weight": 1.0}]}
    {"id": "t0.15", "system_prompt": "You are a helpful assistant.", "question": "Name a citrus fruit.", "response": "A
     lemon."}

The trap: SlimOrca itself says nothing about the part of FLAN. The tag is the start of OpenOrca's id, found by system
prompt and question; a row that OpenOrca lacks has none and is a bad row of the three splits. A local copy is a folder
with both files under their names on the hub, or one written by `save_to_disk` with OpenOrca's file put into it.
Commits, files, columns and counts were read on stored copies of the hub's pages and in public projects that read them.
That every row finds its tag could not be tried: where too few do, the stage stops and says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rounds.data_prep import files, hub
from rounds.data_prep.records import Conversation, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Companion, Row, RowError, Source
from rounds.data_prep.sources._chat import from_sharegpt
from rounds.data_prep.turns import required

REPOSITORY = "Open-Orca/SlimOrca"
REVISION = "ce9ed009ef3292bac33d3520afaf5ec804066120"
FILE = "oo-labeled_correct.gpt4.sharegpt.jsonl"
OPEN_ORCA = "Open-Orca/OpenOrca"
OPEN_ORCA_REVISION = "f0823c7ffc48c9d33a42f16cf0b885fed4a7d0a1"
OPEN_ORCA_FILE = "1M-GPT4-Augmented.parquet"
TAGS = ("t0", "flan", "cot")


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield all rows, or those with the split's tag; a row whose tag is not known is a `RowError` there."""
    all_rows = hub.rows(use, REPOSITORY, revision=REVISION, split="train", patterns=[FILE])
    if use.split == "train":
        yield from all_rows
        return
    tags = _tags(use)
    for row in all_rows:
        tag = row if isinstance(row, RowError) else tags.get(_key(row.get("conversations")))
        if isinstance(row, RowError) or tag == use.split:
            yield row
        elif tag is None:
            yield RowError("no_source_tag", row=row.get(files.ROW), file=row.get(files.FILE))


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Take the turns as they are, named by their content: the set has no ids."""
    turns = from_sharegpt(required(row, "conversations"))
    name = f"{stable_hash(*((turn.role, turn.content) for turn in turns)):016x}"
    return Conversation(name, "slim_orca", turns, use.split if use.split in TAGS else "")


def _tags(use: SourceUse) -> dict[int, str]:
    """Return the tag of each task of OpenOrca, by a hash of system prompt and question."""
    path = Path(use.path) if use.path is not None else None
    folder = path if path is None or path.is_dir() else path.parent
    root = folder or hub.download(OPEN_ORCA, OPEN_ORCA_REVISION, [OPEN_ORCA_FILE])
    found = {}
    for row in files.read(files.find(root, [OPEN_ORCA_FILE])[0]):
        if not isinstance(row, RowError):
            key = stable_hash(_stripped(row.get("system_prompt")), _stripped(row.get("question")))
            found[key] = str(row.get("id")).split(".")[0]
    return found


def _key(turns: Any) -> int:
    dicts = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    said = {str(turn.get("from")): turn.get("value") for turn in dicts}
    return stable_hash(_stripped(said.get("system")), _stripped(said.get("human")))


def _stripped(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


SOURCE = Source(
    name="slim_orca",
    description="GPT-4's verified answers to FLAN tasks, by part of FLAN",
    licence="mit",
    splits={"t0": "conversation", "flan": "conversation", "cot": "conversation", "train": "conversation"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    files=(FILE,),
    companions=(Companion(OPEN_ORCA, OPEN_ORCA_REVISION, (OPEN_ORCA_FILE,)),),
    columns=("conversations",),
    sizes={"train": 517_982},
)
