"""GSM8K: sums of primary school in words, whose answer is one number.

In: hub `openai/gsm8k`, configuration `main`, split `test` (1,319 rows, evaluation only); or a file of these rows, such as GitHub's
`test.jsonl`. Out: prompts, the question as it stands, with the number as `answer`. Licence: MIT.
https://github.com/openai/grade-school-math
Example row, of our own:

    {"question": "A ward has 3 rooms of 4 beds. How many beds are there?", "answer": "There are 3*4 = <<3*4=12>>12 beds.\\n#### 12"}

The number stands behind `####`, some with a comma at the thousands, a dollar or a space: it comes without. What is asked for is the
question alone: how a policy should end its answer is for the recipe's `system_prompt` to say. Rows are named by their place. The commit
is one that many public projects pin.
"""

import re

from rounds.data_prep import files, hub
from rounds.data_prep.records import Prompt
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.turns import ask, identity, required, text

REPOSITORY = "openai/gsm8k"
REVISION = "e53f048856ff4f594e959d75785d2c2d37b678ee"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def to_record(row: Row, index: int, use: SourceUse) -> Prompt:
    """Ask for the number; raises `RowError` `no_final_number`."""
    question, solution = text(required(row, "question"), "question"), text(required(row, "answer"), "answer")
    mark, number = solution.rpartition("####")[1:]
    number = re.sub(r"[\s,$]", "", number)
    if not mark or not _NUMBER.fullmatch(number):
        raise RowError("no_final_number")
    return Prompt(f"{use.split}/{identity(required(row, files.ROW), 'row')}", "gsm8k", ask(question), number)


SOURCE = Source(
    name="gsm8k",
    description="sums of primary school in words, whose answer is one number",
    licence="mit",
    splits={"test": "prompt"},
    rows=hub.reader(REPOSITORY, REVISION, config="main"),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("question", "answer"),
    evaluation_only=("test",),
    sizes={"test": 1_319},
)
