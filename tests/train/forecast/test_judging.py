"""How much a judge may be asked, told before it is."""

from typing import Any

import pytest

from rounds.train.engine import kinds, params
from rounds.train.engine.graph import Stage
from rounds.train.forecast import judging
from rounds.train.forecast.row_counts import Size
from tests import staged

KNOWN = {"sample.own": Size(10, 50, 20, False)}
LLM = {"kind": "llm", "model": "m", "endpoint": "judge", "rubric": "r" * 400, "max_new_tokens": 30}


def asked(judge: dict[str, Any], *before: Stage) -> judging.Asked | None:
    sets = [{"name": "samples", "max_rows": None, "system_prompt": None, "num_answers": 5, "temperature": 1.0, "part": 1}]
    sample = staged.stage("sample.own", "sample", {"sets": sets, "max_length": 256, "seed": 0})
    given = params.RankParams.model_validate({"judge": judge, "name": "one"})
    return judging.of(Stage("rank.own.one", kinds.RANK, given, {"samples": sample, **dict(zip("ab", before, strict=False))}), KNOWN)


def test_every_two_of_five_answers_are_compared_in_both_orders():
    assert asked({"kind": "rule", "rule": "longer"}) == judging.Asked(10, 50)
    assert asked({"kind": "pairwise", "path": "there"}) == judging.Asked(10, 50, 200)
    assert asked(LLM) == judging.Asked(10, 50, 200, 200, 200 * (50 + 2 * 20 + 100 + 30))


def test_a_limit_bounds_calls_and_tokens():
    found = asked({**LLM, "max_calls": 7, "max_tokens": 1000})
    assert found and (found.calls, found.tokens) == (7, 1000)


def test_nothing_is_said_of_prompts_that_are_not_known():
    given = params.RankParams.model_validate({"judge": {"kind": "rule", "rule": "first"}})
    assert judging.of(Stage("rank.own.one", kinds.RANK, given, {}), KNOWN) is None


@pytest.mark.parametrize("name", ["before.0"])
def test_in_a_cascade_it_is_a_bound(name: str):
    given = params.RankParams.model_validate({"judge": {"kind": "rule", "rule": "first"}})
    first = Stage("rank.own.zero", kinds.RANK, given, {})
    sets = [{"name": "samples", "max_rows": None, "system_prompt": None, "num_answers": 2, "temperature": 1.0, "part": 1}]
    sample = staged.stage("sample.own", "sample", {"sets": sets, "max_length": 256, "seed": 0})
    found = judging.of(Stage("rank.own.one", kinds.RANK, given, {"samples": sample, name: first}), KNOWN)
    assert found == judging.Asked(10, 20, cascade=True)
