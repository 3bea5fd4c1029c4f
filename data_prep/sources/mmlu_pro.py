"""MMLU-Pro: exam questions of 14 subjects with up to ten options, most of which a language model added.

In: hub `TIGER-Lab/MMLU-Pro`, splits `test` (12,032 rows), `validation` (70, five a category), and `clinical`, the rows of `test`
whose category is health (818), psychology (798) or biology (717); `test` and `clinical` are for evaluation only. Out: `Question`, with
the category as `group`. Licence: MIT. https://github.com/TIGER-AI-Lab/MMLU-Pro
Example row, of our own:

    {"question_id": 90001, "question": "Which vessel brings blood to the heart muscle?", "options": ["Aorta", " Coronary artery",
     "N/A", "Portal vein"], "answer": "B", "answer_index": 1, "cot_content": "", "category": "health", "src": "ori_mmlu-anatomy"}

Med42-v2 does not say which categories its clinical part has; `clinical` is our choice: the three into which MMLU-Pro has put the
subjects of MMLU that Med42-v2 counts as medical. Its `group`s are scored apart too. Options `N/A` stand for none and are left out, as
the set's own harness does; a space before an option, which up to January 2026 told the right ones in some subjects, is taken off. The
commit is one from after that, which many public projects pin.
"""

from collections.abc import Iterator

from rounds.data_prep import hub
from rounds.data_prep.records import Question
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.sources._questions import closed
from rounds.data_prep.turns import identity, required, text

REPOSITORY = "TIGER-Lab/MMLU-Pro"
REVISION = "b189ec765aa7ed75c8acfea42df31fdae71f97be"
CLINICAL = ("biology", "health", "psychology")


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the split; `clinical` is read from `test`."""
    split = "test" if use.split == "clinical" else use.split
    return hub.rows(use, REPOSITORY, revision=REVISION, split=split, patterns=(f"data/{split}-*",) if use.path is None else ())


def to_record(row: Row, index: int, use: SourceUse) -> Question:
    """Ask the question; raises `RowError`: `not_a_clinical_category` (not bad), `options_not_a_list`, `answer_and_index_differ`,
    `answer_is_not_given` (it is `N/A`), and those of `closed`.
    """
    category = text(required(row, "category"), "category").strip().lower()
    if use.split == "clinical" and category not in CLINICAL:
        raise RowError("not_a_clinical_category", bad=False)
    options, answer = required(row, "options"), required(row, "answer_index")
    if not isinstance(options, list):
        raise RowError("options_not_a_list")
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise RowError("answer_out_of_range")
    letter = row.get("answer")
    if isinstance(letter, str) and letter.strip().upper() != chr(ord("A") + answer):
        raise RowError("answer_and_index_differ")
    given = [place for place, option in enumerate(options) if not (isinstance(option, str) and option.strip().upper() == "N/A")]
    if answer not in given:
        raise RowError("answer_is_not_given")
    name, question = identity(required(row, "question_id"), "question_id"), text(required(row, "question"), "question")
    return closed("mmlu_pro", name, question, [options[place] for place in given], given.index(answer), group=category)


SOURCE = Source(
    name="mmlu_pro",
    description="exam questions of 14 subjects with up to ten options",
    licence="mit",
    splits={"test": "question", "validation": "question", "clinical": "question"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    files=("data/*",),
    columns=("question_id", "question", "options", "answer_index", "category"),
    evaluation_only=("test", "clinical"),
    sizes={"test": 12_032, "validation": 70, "clinical": 2_333},
)
