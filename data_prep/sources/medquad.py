"""MedQuAD: consumers' questions with long answers from twelve sites of the National Institutes of Health.

In: hub `keivalya/MedQuad-MedicalQnADataset`, split `train` (16,407 rows); or a local file with `question` and `answer`
(and `id`, `source`, `focus`), as the XML files of the GitHub repository flatten to. Out: conversations. Licence: CC BY
4.0 (the GitHub repository; this hub copy's card names none). https://github.com/abachaa/MedQuAD
Example row, of our own, and the same in the local form:

    {"qtype": "symptoms", "Question": "What are the symptoms of Hay fever ?", "Answer": "Sneezing, and itching eyes."}
    {"id": "NIHSeniorHealth/1-2", "focus": "Hay fever", "question": "What are the symptoms of Hay fever ?",
     "answer": "Sneezing, and itching eyes."}

Many answers repeat a template (inheritance of rare diseases), and some questions come with several answers: there is
work for `near_dedup`. The commit is the one that public projects pin; a stored copy of the hub's pages shows it as the
last.
"""

from rounds.data_prep import hub, render
from rounds.data_prep.records import Conversation, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "keivalya/MedQuad-MedicalQnADataset"
REVISION = "5b0961fbaa6d7f9c344c5d59c29943fb900c2eca"


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Ask the question and give the whole answer."""
    columns = ("question", "answer") if "question" in row else ("Question", "Answer")
    question, answer = (text(required(row, column), column) for column in columns)
    question = question.strip().replace(" ?", "?")  # The set's templates put a space before the mark.
    given = row.get("id")
    name = identity(given) if given is not None else f"{stable_hash(question, answer):016x}"
    asked = render.request("answer", name, seed=use.seed, question=question)
    return render.exchange("medquad", name, asked, answer)


SOURCE = Source(
    name="medquad",
    description="consumer health questions with long answers from NIH sites",
    licence="cc-by-4.0",
    splits={"train": "conversation"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("Question", "Answer"),
    mean_tokens={"train": (23, 411)},
    sizes={"train": 16_407},
)
