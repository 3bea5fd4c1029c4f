"""The prompts of the suite `use_cases` are read by source `file` as they are: twenty, five of each use, and none is dropped."""

from collections import Counter
from pathlib import Path

import yaml

from rounds.data_prep import sources
from rounds.data_prep.records import Prompt
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import RowError

SUITE = Path(__file__).parents[3] / "recipes" / "suites" / "use_cases.yaml"


def test_the_use_cases_are_prompts_of_four_kinds() -> None:
    fields = yaml.safe_load(SUITE.read_text(encoding="utf-8"))["sources"]["use_cases"]
    use = SourceUse(**{**fields, "path": str(SUITE.with_name(fields["path"]))})
    source = sources.load(use.source)
    source.check(use)
    assert source.kind(use) == "prompt"
    rows = list(source.rows(use))
    assert not any(isinstance(row, RowError) for row in rows)
    made = [source.convert(row, index, use) for index, row in enumerate(rows) if not isinstance(row, RowError)]
    assert all(isinstance(record, Prompt) and record.answer is None for record in made)
    assert Counter(record.group for record in made) == dict.fromkeys(
        ("medical_question", "record_summary", "diagnosis_aid", "general_health"), 5
    )
    assert len({record.id for record in made}) == len({record.prompt for record in made if isinstance(record, Prompt)}) == 20
