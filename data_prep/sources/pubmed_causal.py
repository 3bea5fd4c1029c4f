"""PubMed Causal for medAlpaca: does the conclusion of a paper state a correlation, a cause, or neither?

In: hub `medalpaca/medical_meadow_pubmed_causal`, split `train` (2,446 rows), from the corpus of Yu, Li and Wang (2019).
Out: `Question` with four choices. Licence: the card names none.
https://huggingface.co/datasets/medalpaca/medical_meadow_pubmed_causal
Example row, of our own:

    {"instruction": "Question: Is this describing a (1) directly correlative relationship, (2) conditionally causative
     relationship, (3) causative relationship, or (0) no relationship.",
     "input": "Nurses who wore masks had fewer colds.", "output": "This is a directly correlative relationship"}

`instruction` is the same in every row; the answers are four fixed sentences, here the choices. Commit, columns and the
four sentences were read in a public survey of the set.
"""

from rounds.data_prep import hub
from rounds.data_prep.records import Question
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source, _alpaca
from rounds.data_prep.sources._questions import closed
from rounds.data_prep.turns import normalised

REPOSITORY = "medalpaca/medical_meadow_pubmed_causal"
REVISION = "8a80e781d33544d22b95d26a8d68cafbe8a6470e"
QUESTION = "Which relationship does this conclusion describe?"
# The set's own sentences, in its order 0 to 3; the first lacks its verb there.
SENTENCES = (
    "this no relationship",
    "this is a directly correlative relationship",
    "this is a conditionally causative relationship",
    "this is a causative relationship",
)
CHOICES = (
    "No relationship.",
    "A directly correlative relationship.",
    "A conditionally causative relationship.",
    "A causative relationship.",
)


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask which relationship the sentence describes; raises `RowError` `not_a_relationship` for another answer."""
    name, sentence, output = _alpaca.parts(row)
    found = normalised(output).rstrip(".").replace("this is no relationship", SENTENCES[0])
    if found not in SENTENCES:
        raise RowError("not_a_relationship")
    return closed("pubmed_causal", name, f"{QUESTION}\n\n{sentence.strip()}", CHOICES, SENTENCES.index(found))


SOURCE = Source(
    name="pubmed_causal",
    description="conclusions of papers, classed by the causal relationship that they state",
    licence="",
    splits={"train": "question"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=_alpaca.COLUMNS,
    sizes={"train": 2_446},
)
