"""Stack Exchange, the medical and adjacent sites: questions with the answer that readers voted highest.

In: hub `HuggingFaceH4/stack-exchange-preferences`, of which only the folders of the sites below are read; one split,
`train`. Med42-v2 lists 64,246 rows. Out: conversations. Licence: CC BY-SA 4.0, with credit to each author.
https://huggingface.co/datasets/HuggingFaceH4/stack-exchange-preferences
Example row, of our own:

    {"qid": 7, "question": "<p>Does cold air cause colds?</p>", "date": "2020/01/05", "metadata":
     ["https://health.stackexchange.com/questions/7", "https://health.stackexchange.com"], "answers": [{"answer_id": 8,
     "author": "A. Writer", "author_id": 3, "author_profile": "", "pm_score": 3, "selected": true,
     "text": "<p>No. <b>Viruses</b> do.</p>"}]}

`pm_score` is log2(1 + votes), rounded, plus 1 for the accepted answer, and -1 for votes below zero (the set's card). An
answer needs `MIN_SCORE`. Two sites have changed their names, so both are looked for. Commit, layout and columns were read
on stored pages of the hub and in public code that reads them. A card of a part of the set gives `pm_score` as an integer,
one who read it says text, so both are taken.
"""

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

from rounds.data_prep import hub, render
from rounds.data_prep.records import Conversation
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "HuggingFaceH4/stack-exchange-preferences"
REVISION = "c7bda74048748f55749cd663c3d8d1025a841fd9"
# The paper's categories; `psychology` and `medicalsciences` are the later names of `cogsci` and `health`.
SITES = (
    "academia",
    "bioinformatics",
    "biology",
    "cogsci",
    "fitness",
    "health",
    "medicalsciences",
    "psychology",
)
FILES = tuple(f"data/{site}.stackexchange.com/*.parquet" for site in SITES)
_INTEGER = re.compile(r"-?\d{1,9}")
MIN_SCORE = 1  # One vote more than none: below it nobody but the author has spoken for the answer.
_BLOCKS = ("p", "div", "ul", "ol", "pre", "blockquote", "h1", "h2", "h3", "table", "tr", "br", "hr")


class _Text(HTMLParser):
    """Collects the text of HTML, with line ends between its blocks and a dash before the items of a list."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in _BLOCKS:
            self.pieces.append("\n")
        elif tag == "li":
            self.pieces.append("\n- ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS and tag not in ("br", "hr"):
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the sites."""
    return hub.rows(use, REPOSITORY, revision=REVISION, split=use.split, patterns=FILES)


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Answer with the best answer; raises `RowError`: `answers_not_a_list`, `no_upvoted_answer` (not bad), `not_html`."""
    site = _site(required(row, "metadata"))
    name = f"{site}/{identity(required(row, 'qid'), 'qid')}"
    question, answers = _plain(required(row, "question"), "question"), required(row, "answers")
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        raise RowError("answers_not_a_list")
    # The accepted answer first among equals, then the earlier one: the same in every run.
    ranked = sorted(answers, key=lambda answer: (-_score(answer), not answer.get("selected")))
    if not ranked or _score(ranked[0]) < MIN_SCORE:
        raise RowError("no_upvoted_answer", bad=False)
    answer = _plain(ranked[0].get("text"), "answer")
    asked = render.request("answer", name, seed=use.seed, question=question)
    return render.exchange("stackexchange", name, asked, answer, group=site)


def _score(answer: Mapping[str, Any]) -> int:
    score = answer.get("pm_score")
    return int(score) if isinstance(score, int) or (isinstance(score, str) and _INTEGER.fullmatch(score)) else -1


def _site(metadata: Any) -> str:
    address = metadata[0] if isinstance(metadata, list) and metadata else None
    parts = address.split("/") if isinstance(address, str) else []
    if len(parts) < 3 or "." not in parts[2]:
        raise RowError("no_site_in_metadata")
    return parts[2].split(".")[0]


def _plain(value: Any, name: str) -> str:
    parser, html = _Text(), text(value, name)
    try:
        parser.feed(html)
        parser.close()
    except AssertionError:  # what html.parser raises at a declaration that it cannot read, such as `<![foo[bar]]>`
        raise RowError("not_html") from None
    lines = [line.rstrip() for line in "".join(parser.pieces).split("\n")]
    kept = [line for place, line in enumerate(lines) if line.strip() or (place and lines[place - 1].strip())]
    return text("\n".join(kept).strip(), name)


SOURCE = Source(
    name="stackexchange",
    description="questions and best answers of Stack Exchange's medical and adjacent sites",
    licence="cc-by-sa-4.0",
    splits={"train": "conversation"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    files=FILES,
    columns=("qid", "metadata", "question", "answers"),
    version=2,
)
