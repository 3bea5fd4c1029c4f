"""MTS-Dialog: short conversations between doctor and patient, and the section of the note that each leads to.

In: as `path`, a clone of the GitHub repository at commit 3ff0801933608d6f570468c13125125fb5cabdea, or one file of its
rows; splits `train` (1,201 rows), `validation` (100), `test1` and `test2` (200 each, evaluation only). Out:
conversations that ask for the section. Licence: CC BY 4.0. https://github.com/abachaa/MTS-Dialog
Example row, of our own:

    {"ID": "0", "section_header": "GENHX", "section_text": "The patient has had a cough for two days.", "dialogue":
     "Doctor: What brings you in?\\r\\nPatient: A cough, since two days."}

The hub has no copy that could be used: `har1/MTS_Dialogue-Clinical_Note` has rewritten notes, and one split for
all. Built from public sample notes with invented conversations: made-up names and dates occur.
"""

from collections.abc import Iterator
from typing import Any

from rounds.data_prep import hub, render
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.turns import identity, required, text

GITHUB = "https://github.com/abachaa/MTS-Dialog"
COMMIT = "3ff0801933608d6f570468c13125125fb5cabdea"
FILES = {
    "train": "Main-Dataset/MTS-Dialog-TrainingSet.csv",
    "validation": "Main-Dataset/MTS-Dialog-ValidationSet.csv",
    "test1": "Main-Dataset/MTS-Dialog-TestSet-1-MEDIQA-Chat-2023.csv",
    "test2": "Main-Dataset/MTS-Dialog-TestSet-2-MEDIQA-Sum-2023.csv",
}
SECTIONS = {
    "ALLERGY": "Allergies",
    "ASSESSMENT": "Assessment",
    "CC": "Chief complaint",
    "DIAGNOSIS": "Diagnosis",
    "DISPOSITION": "Disposition",
    "EDCOURSE": "Emergency department course",
    "EXAM": "Physical examination",
    "FAM/SOCHX": "Family and social history",
    "GENHX": "History of present illness",
    "GYNHX": "Gynaecological history",
    "IMAGING": "Imaging",
    "IMMUNIZATIONS": "Immunisations",
    "LABS": "Laboratory results",
    "MEDICATIONS": "Medications",
    "OTHER_HISTORY": "Other history",
    "PASTMEDICALHX": "Past medical history",
    "PASTSURGICAL": "Past surgical history",
    "PLAN": "Plan",
    "PROCEDURES": "Procedures",
    "ROS": "Review of systems",
}


def check(use: SourceUse) -> None:
    """Raise `UserError` where no path is given: the set is not on the hub."""
    if use.path is None:
        raise UserError(f"source 'mts_dialog' is on GitHub only; clone {GITHUB} at {COMMIT} and give the folder as `path:`")


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split."""
    check(use)
    return hub.rows(use, GITHUB, revision=None, split=use.split, patterns=[FILES[use.split]])


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Ask for the section of the note; raises `RowError` `unknown_section` for a header that the set does not have."""
    name = f"{use.split}/{identity(required(row, 'ID'), 'ID')}"
    section = _section(required(row, "section_header"))
    note, dialogue = text(required(row, "section_text"), "section_text"), text(required(row, "dialogue"), "dialogue")
    asked = render.request("note_section", name, seed=use.seed, section=section, text=dialogue)
    return render.exchange("mts_dialog", name, asked, note)


def _section(header: Any) -> str:
    section = SECTIONS.get(header.strip().upper()) if isinstance(header, str) else None
    if section is None:
        raise RowError("unknown_section")
    return section


SOURCE = Source(
    name="mts_dialog",
    description="short doctor-patient conversations and the note section that each leads to",
    licence="cc-by-4.0",
    splits=dict.fromkeys(FILES, "conversation"),
    rows=rows,
    to_record=to_record,
    origin=f"{GITHUB} at {COMMIT}",
    columns=("ID", "section_header", "section_text", "dialogue"),
    evaluation_only=("test1", "test2"),
    mean_tokens={"train": (173, 56)},
    check_use=check,
    sizes={"train": 1_201, "validation": 100, "test1": 200, "test2": 200},
)
