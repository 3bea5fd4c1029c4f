"""PUBHEALTH: claims about public health from fact-checking and news sites, with the article that checks each.

In: the TSV files of the GitHub release or a parquet copy of the hub set `ImperialCollegeLondon/health_fact`, splits
`train` (9,832 rows), `validation` (1,225) and `test` (1,235, evaluation only), as `path`. Out: `Question` with four
verdicts. Licence: MIT. https://github.com/neemakot/Health-Fact-Checking
Example row, of our own:

    {"claim_id": "15661", "claim": "A spoon of honey cures asthma.", "date_published": "May 2, 2019", "explanation": "No
     trial shows it.", "fact_checkers": "A. Writer", "main_text": "A post says that honey cures asthma. Doctors say that
     no trial supports it.", "sources": "", "label": 0, "subjects": "asthma"}

`label` is false, mixture, true or unproven, as a word or as its place in that order; -1 and other words mean that it is
missing. `explanation` gives the verdict away and is left out. The hub set is code that downloads the files, and such
code is never run here; no commit with plain files could be found, so none is pinned and `verified` is off.
"""

from collections.abc import Iterator
from typing import Any

from data_prep import hub
from data_prep.records import Question
from data_prep.schema import SourceUse
from data_prep.sources import Row, RowError, Source
from data_prep.sources._questions import closed
from data_prep.turns import identity, required, text

REPOSITORY = "ImperialCollegeLondon/health_fact"
LABELS = ("false", "mixture", "true", "unproven")
CHOICES = ("The claim is false.", "The claim mixes true and false.", "The claim is true.", "The claim is unproven.")
FILES = {
    "train": ("**/train.tsv", "**/train-*.parquet", "**/train/*.parquet"),
    "validation": ("**/dev.tsv", "**/validation-*.parquet", "**/validation/*.parquet"),
    "test": ("**/test.tsv", "**/test-*.parquet", "**/test/*.parquet"),
}


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split."""
    return hub.rows(use, REPOSITORY, revision=None, split=use.split, patterns=FILES[use.split])


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask for the verdict on the claim; raises `RowError` `no_label` (not bad) where there is none."""
    name = identity(required(row, "claim_id"), "claim_id")
    claim, article = (
        text(required(row, "claim"), "claim").strip(),
        text(required(row, "main_text"), "main_text").strip(),
    )
    asked = f"{article}\n\nGiven this article, is the claim right?\n\nClaim: {claim}"
    return closed("pubhealth", name, asked, CHOICES, _label(required(row, "label")))


def _label(value: Any) -> int:
    if isinstance(value, str) and value.strip().lower() in LABELS:
        return LABELS.index(value.strip().lower())
    if isinstance(value, int) and 0 <= value < len(LABELS):
        return value
    raise RowError("no_label", bad=False)


SOURCE = Source(
    name="pubhealth",
    description="claims about public health with the article that checks them, four verdicts",
    licence="mit",
    splits={"train": "question", "validation": "question", "test": "question"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    verified=False,
    columns=("claim_id", "claim", "main_text", "label"),
    evaluation_only=("test",),
    sizes={"train": 9_832, "validation": 1_225, "test": 1_235},
)
