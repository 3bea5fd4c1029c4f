"""PubMedQA, the 1,000 expert-labelled questions: yes, no or maybe, answered from an abstract without its conclusion.

In: hub `bigbio/pubmed_qa`, configuration `pubmed_qa_labeled_fold0_source`, splits `train` (450 rows), `validation` (50) and
`test` (500, evaluation only: the official test half, which EleutherAI's harness scores); split `labeled`, all 1,000, from hub
`qiaojin/PubMedQA`, configuration `pqa_labeled`, evaluation only. Or as a local file rows of that split, such as
`ori_pqal.json` of the GitHub repository (object PMID -> row). Out: `Question`. Licence: MIT (the abstracts come from
PubMed). https://pubmedqa.github.io
Example row, of our own:

    {"pubid": 1, "question": "Does a nurse's call before surgery reduce cancellations?",
     "context": {"contexts": ["Cancelled operations waste theatre time.", "Of 200 patients called, 4 cancelled; of 200
     others, 15."], "labels": ["BACKGROUND", "RESULTS"]},
     "long_answer": "A call before surgery reduced cancellations.", "final_decision": "yes"}

`long_answer` is the conclusion: it gives the answer away and is never shown. Rows of fold 0 have no PMID: they are named by
their question. Its commit, which added the files of the fold, was read on a stored copy of its page on the hub, their
names could not be seen, so `verified` is off; commit, configuration and the one file of `labeled` are those that many
public projects pin and read.
"""

from collections.abc import Iterator
from typing import Any

from rounds.data_prep import hub, render
from rounds.data_prep.records import Question, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Companion, Row, RowError, Source
from rounds.data_prep.turns import ask, identity, required, text

REPOSITORY = "bigbio/pubmed_qa"
REVISION = "32707c4b9e3a7d8f5c34eae183a1924620839768"
FOLD = "pubmed_qa_labeled_fold0_source"
FILES = (f"{FOLD}/*.parquet",)  # of 22 configurations, the largest 233 MB
LABELED = "qiaojin/PubMedQA"
LABELED_REVISION = "9001f2853fb87cab8d220904e0de81ac6973b318"
LABELED_FILES = ("pqa_labeled/*.parquet",)  # not the 211,269 artificial rows beside them
CHOICES = ("yes", "no", "maybe")


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split, in the columns of the copy that is read."""
    if use.split != "labeled":
        patterns = (f"{FOLD}/{use.split}-*.parquet",)
        return hub.rows(use, REPOSITORY, revision=REVISION, split=use.split, patterns=patterns)
    return hub.rows(use, LABELED, revision=LABELED_REVISION, split="train", patterns=LABELED_FILES)


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask the question after the abstract's sections; `not_a_decision` where the label is none of the three."""
    row = _hub_columns(row) if "QUESTION" in row else row
    question = text(required(row, "question"), "question")
    name = identity(required(row, "pubid"), "pubid") if "pubid" in row else f"{stable_hash(question):016x}"
    prompt = f"{_abstract(required(row, 'context'))}\n\nQuestion: {question}"
    decision = text(required(row, "final_decision"), "final_decision").strip().lower()
    if decision not in CHOICES:
        raise RowError("not_a_decision")
    asked = ask(render.with_words(prompt, CHOICES))
    return Question(id=name, source="pubmedqa", prompt=asked, choices=CHOICES, answer=CHOICES.index(decision))


def _hub_columns(row: Row) -> Row:
    """Give a row of `ori_pqal.json` the names of the hub's columns."""
    names = {"id": "pubid", "QUESTION": "question", "final_decision": "final_decision"}
    sections = {"contexts": row.get("CONTEXTS"), "labels": row.get("LABELS")}
    return {ours: row[theirs] for theirs, ours in names.items() if theirs in row} | {"context": sections}


def _abstract(context: Any) -> str:
    contexts = context.get("contexts") if isinstance(context, dict) else None
    labels = context.get("labels") if isinstance(context, dict) else None
    if not isinstance(contexts, list) or not contexts:
        raise RowError("empty_context")
    sections = [text(section, "context") for section in contexts]
    if not isinstance(labels, list) or len(labels) != len(sections):
        return "\n".join(sections)
    return "\n".join(f"{label}: {section}" if label else section for label, section in zip(labels, sections, strict=True))


SOURCE = Source(
    name="pubmedqa",
    description="yes/no/maybe questions on PubMed abstracts, 1,000 labelled by experts",
    licence="mit",
    splits={"train": "question", "validation": "question", "test": "question", "labeled": "question"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    verified=False,
    files=FILES,
    homes={"labeled": Companion(LABELED, LABELED_REVISION, LABELED_FILES)},
    columns=("question", "context", "final_decision"),
    evaluation_only=("test", "labeled"),
    sizes={"train": 450, "validation": 50, "test": 500, "labeled": 1_000},
)
