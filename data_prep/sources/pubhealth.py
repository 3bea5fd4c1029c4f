"""PUBHEALTH: claims about public health from fact-checking and news sites, with the article that checks each.

In: hub `bigbio/pubhealth`, configuration `pubhealth_source`, splits `train`, `validation` and `test` (evaluation only); or as
`path` the TSV files of the GitHub release (9,832, 1,225 and 1,235 rows, some without a label), or a parquet copy of the hub set
`ImperialCollegeLondon/health_fact`. Out: `Question` with four verdicts. Licence: MIT.
https://github.com/neemakot/Health-Fact-Checking
Example row, of our own:

    {"claim_id": "15661", "claim": "A spoon of honey cures asthma.", "date_published": "May 2, 2019", "explanation": "No
     trial shows it.", "fact_checkers": "A. Writer", "main_text": "A post says that honey cures asthma. Doctors say that
     no trial supports it.", "sources": "", "label": 0, "subjects": "asthma"}

`label` is false, mixture, true or unproven as a word, or its place in an order that the two hub sets do not share; -1 and other
words mean that it is missing. `explanation` gives the verdict away and is left out. Both hub sets are code that downloads the
files, and such code is never run here: pinned is a commit of the first with the parquet files that the hub made of it. The
commit and its files were read on stored pages, columns and order in the set's code.
"""

from collections.abc import Iterator
from typing import Any

from rounds.data_prep import hub
from rounds.data_prep.files import FILE
from rounds.data_prep.records import Question
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.sources._questions import closed
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "bigbio/pubhealth"
REVISION = "8c7e1932b279adc2676e1a06a5b354480d56ca71"
CONFIG = "pubhealth_source"
LABELS = ("false", "mixture", "true", "unproven")  # health_fact's order
BIGBIO_LABELS = ("true", "false", "unproven", "mixture")
CHOICES = ("The claim is false.", "The claim mixes true and false.", "The claim is true.", "The claim is unproven.")
# Not `pubhealth_bigbio_pairs` beside it, which has other columns.
FILES = {
    "train": (f"{CONFIG}/train/*.parquet", "**/train.tsv", "**/train-*.parquet"),
    "validation": (f"{CONFIG}/validation/*.parquet", "**/dev.tsv", "**/validation-*.parquet"),
    "test": (f"{CONFIG}/test/*.parquet", "**/test.tsv", "**/test-*.parquet"),
}


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split."""
    return hub.rows(use, REPOSITORY, revision=REVISION, split=use.split, patterns=FILES[use.split])


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask for the verdict on the claim; raises `RowError` `no_label` (not bad) where there is none, and
    `label_of_unknown_order` for a number in a file that does not tell which of the two sets it is of.
    """
    name = identity(required(row, "claim_id"), "claim_id")
    claim, article = (
        text(required(row, "claim"), "claim").strip(),
        text(required(row, "main_text"), "main_text").strip(),
    )
    asked = f"{article}\n\nGiven this article, is the claim right?\n\nClaim: {claim}"
    return closed("pubhealth", name, asked, CHOICES, _label(required(row, "label"), str(row.get(FILE))))


def _label(value: Any, file: str) -> int:
    if isinstance(value, str) and value.strip().lower() in LABELS:
        return LABELS.index(value.strip().lower())
    if not isinstance(value, int) or not 0 <= value < len(LABELS):
        raise RowError("no_label", bad=False)
    if "/" not in file:
        raise RowError("label_of_unknown_order")
    return LABELS.index(BIGBIO_LABELS[value]) if file.startswith(f"{CONFIG}/") else value


SOURCE = Source(
    name="pubhealth",
    description="claims about public health with the article that checks them, four verdicts",
    licence="mit",
    splits={"train": "question", "validation": "question", "test": "question"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    files=tuple(patterns[0] for patterns in FILES.values()),
    columns=("claim_id", "claim", "main_text", "label"),
    evaluation_only=("test",),
    sizes={"train": 9_832, "validation": 1_225, "test": 1_235},
    version=2,
)
