"""IFEval: prompts with instructions that a program can check, such as a number of words or no commas.

In: hub `google/IFEval`, its one file `ifeval_input_data.jsonl` (541 rows); or a file of these rows. Split `test`, for evaluation only.
Out: prompts, with the instructions and their arguments in `details`. Licence: Apache-2.0.
https://github.com/google-research/google-research/tree/master/instruction_following_eval
Example row, of our own:

    {"key": 9001, "prompt": "Write about sleep. Use no commas, and 50 words or more.", "instruction_id_list":
     ["punctuation:no_comma", "length_constraints:number_words"], "kwargs": [{}, {"relation": "at least", "num_words": 50}]}

`details` is an object of JSON with `instruction_id_list` and `kwargs` as the set's checkers take them. A copy in parquet gives each
instruction the arguments of all, most of them null: nulls are left out, since a checker refuses an argument that it does not have. The
commit is the one that many public projects pin. On the hub the split is called train, and nobody trains on it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rounds.data_prep import hub
from rounds.data_prep.records import Prompt
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.sources._plain import whole
from rounds.data_prep.turns import ask, identity, required, text

REPOSITORY = "google/IFEval"
REVISION = "966cd89545d6b6acfd7638bc708b98261ca58e84"
FILES = ("ifeval_input_data.jsonl",)


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the set's one file, or of a local copy."""
    return hub.rows(use, REPOSITORY, revision=REVISION, split="train", patterns=() if use.path else FILES)


def to_record(row: Row, index: int, use: SourceUse) -> Prompt:
    """Return the prompt with what is checked of its answer; raises `RowError`: `instructions_not_a_list`, `kwargs_not_objects`,
    `kwargs_and_instructions_differ`.
    """
    name, asked = identity(required(row, "key"), "key"), ask(text(required(row, "prompt"), "prompt"))
    names, given = required(row, "instruction_id_list"), required(row, "kwargs")
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise RowError("instructions_not_a_list")
    if not isinstance(given, list) or not all(isinstance(each, Mapping) for each in given):
        raise RowError("kwargs_not_objects")
    if len(given) != len(names):
        raise RowError("kwargs_and_instructions_differ")
    details = {"instruction_id_list": names, "kwargs": [_given(each) for each in given]}
    return Prompt(name, "ifeval", asked, details=json.dumps(details, ensure_ascii=False))


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    # Numbers beside nulls come as floats from some writers, and a checker counts with them.
    return {name: value if (number := whole(value)) is None else number for name, value in arguments.items() if value is not None}


SOURCE = Source(
    name="ifeval",
    description="prompts with instructions that a program can check",
    licence="apache-2.0",
    splits={"test": "prompt"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    files=FILES,
    columns=("key", "prompt", "instruction_id_list", "kwargs"),
    evaluation_only=("test",),
    sizes={"test": 541},
)
