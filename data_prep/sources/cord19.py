"""CORD-19 for medAlpaca: abstracts of papers on COVID-19 and other coronaviruses, each with its title.

In: hub `medalpaca/medical_meadow_cord19`, split `train` (821,007 rows in one JSON file of 1.4 GB; Med42-v2 used 17,721:
see `max_rows`). Out: conversations that ask for a title. Licence: the card names none, and CORD-19's papers carry
different ones, some for research on COVID-19 only. https://huggingface.co/datasets/medalpaca/medical_meadow_cord19
Example row, of our own:

    {"instruction": "Please summerize the given abstract to a title", "input": "We followed 90 nurses for a winter.
     Masks halved the rate of colds.", "output": "Masks and colds among nurses: a winter's cohort"}

`instruction` is the same in every row, misspelling included, and is left out. Commit and columns were read in a public
survey of the set and on a stored copy of the hub's page of files.
"""

from rounds.data_prep import hub, render
from rounds.data_prep.records import Conversation
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source, _alpaca

REPOSITORY = "medalpaca/medical_meadow_cord19"
REVISION = "f48ea381cb3ae21178d8a573bb1a8995d4ab6b11"


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Ask for the title of the abstract."""
    name, abstract, title = _alpaca.parts(row)
    return render.exchange("cord19", name, render.request("title", name, seed=use.seed, text=abstract), title)


SOURCE = Source(
    name="cord19",
    description="abstracts of coronavirus papers, to be summed up in their titles",
    licence="",
    splits={"train": "conversation"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=_alpaca.COLUMNS,
    sizes={"train": 821_007},
)
