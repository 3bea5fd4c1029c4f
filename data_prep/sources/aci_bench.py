"""ACI-Bench: role-played visits, the whole conversation and the full clinical note.

In: hub `mkieffer/ACI-Bench` (a copy of the challenge data by a third party; one configuration a subset), splits `train`
(67 rows), `valid` (20) and `test1` to `test3` (40 each, evaluation only); or as `path` a clone of the GitHub
repository, or one file of rows. Out: conversations that ask for the note. Licence: CC BY 4.0.
https://github.com/wyim/aci-bench
Example row, of our own:

    {"dataset": "virtassist", "encounter_id": "D2N900", "dialogue": "[doctor] how is the knee ?\\n[patient] it still
     hurts on stairs .", "note": "CHIEF COMPLAINT\\n\\nKnee pain on stairs."}

Long: about 1,240 words of dialogue in the middle. The hub's copy is made of GitHub's rows (commit
b909b2bb9cf1d19de08df15cddde7bd0179665e4, read whole) by a public script, github.com/mkieffer1107/aci-bench_upload, and has no
column `dataset`. Its author found the tags of doctor and patient exchanged in many dialogues: they are left as they are.
"""

from collections.abc import Iterator
from pathlib import Path

from rounds.data_prep import files, hub, render
from rounds.data_prep.records import Conversation
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "mkieffer/ACI-Bench"
REVISION = "fd7e84c51bd04c16ee4e8b3fee2ff96ff5141214"
SUBSETS = ("virtassist", "virtscribe", "aci")
GITHUB = {
    "train": "data/challenge_data/train.csv",
    "valid": "data/challenge_data/valid.csv",
    "test1": "data/challenge_data/clinicalnlp_taskB_test1.csv",
    "test2": "data/challenge_data/clinicalnlp_taskC_test2.csv",
    "test3": "data/challenge_data/clef_taskC_test3.csv",
}


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split, subset by subset where the copy keeps them apart."""
    path = Path(use.path) if use.path is not None else None
    if path is not None and (path.is_file() or hub.is_saved(path)):
        yield from hub.local(path, split=use.split)
    elif path is not None and (path / "data" / "challenge_data").is_dir():
        yield from files.read(files.find(path, [GITHUB[use.split]])[0])
    else:
        for subset in SUBSETS:
            yield from hub.rows(use, REPOSITORY, revision=REVISION, split=use.split, config=subset)


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Ask for the note of the visit."""
    name = identity(required(row, "encounter_id"), "encounter_id")
    dialogue, note = text(required(row, "dialogue"), "dialogue"), text(required(row, "note"), "note")
    asked = render.request("note", name, seed=use.seed, text=dialogue)
    return render.exchange("aci_bench", name, asked, note)


SOURCE = Source(
    name="aci_bench",
    description="role-played visits and their full clinical notes",
    licence="cc-by-4.0",
    splits=dict.fromkeys(GITHUB, "conversation"),
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("encounter_id", "dialogue", "note"),
    evaluation_only=("test1", "test2", "test3"),
    mean_tokens={"train": (1570, 599)},
    sizes={"train": 67, "valid": 20, "test1": 40, "test2": 40, "test3": 40},
)
