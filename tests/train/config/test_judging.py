"""A judge's section says what it is, and a mistake in it is told by field."""

import pytest
from pydantic import TypeAdapter, ValidationError

from rounds.train.config.judging import Judge, PairRules, Rank

COMMIT = "0123456789" * 4
JUDGE: TypeAdapter = TypeAdapter(Judge)
RUBRIC = {"rubric": "prompts/rubrics/pairwise.md"}


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "verifiable", "match": "choice"},
        {
            "kind": "reward_model",
            "id": "Skywork/Skywork-Reward-V2-Qwen3-8B",
            "revision": COMMIT,
            "max_length": 4096,
            "licence": "Apache-2.0",
        },
        {"kind": "reward_model", "path": "judges/own"},
        {"kind": "pairwise", "id": "llm-blender/PairRM-hf", "revision": COMMIT},
        {"kind": "llm", "model": "gpt-oss-120b", "endpoint": "judge", **RUBRIC, "max_missing_share": 0.05},
        {"kind": "llm", "policy": "base", **RUBRIC},
        {"kind": "rule", "rule": "longer"},
    ],
)
def test_each_kind_of_judge_is_read_and_stored_and_read_again(given):
    judge = JUDGE.validate_python(given)
    assert judge.kind == given["kind"]
    assert type(judge).read_stored(judge.stored(), judge.beside()) == judge


def test_what_a_judge_may_cost_and_where_it_is_is_in_no_key():
    given = {"kind": "llm", "model": "m", "endpoint": "judge", **RUBRIC}
    judge = JUDGE.validate_python({**given, "max_calls": 3, "max_tokens": 9, "allow_outside": True, "max_missing_share": 0.5})
    assert judge.stored() == JUDGE.validate_python({**given, "endpoint": "other"}).stored()
    assert judge.stored() == {"kind": "llm", "model": "m", **RUBRIC, "max_new_tokens": 1024}
    weights = {"kind": "reward_model", "path": "here", "licence": "MIT"}
    assert JUDGE.validate_python(weights).stored() == JUDGE.validate_python({**weights, "path": "there", "licence": "BSD"}).stored()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "reward_model"}, "found neither"),
        ({"kind": "reward_model", "id": "a/b", "revision": COMMIT, "path": "c"}, "found both"),
        ({"kind": "pairwise", "id": "a/b"}, "full commit of a/b"),
        ({"kind": "pairwise", "path": "c", "revision": COMMIT}, "a folder enters the key by its content"),
        ({"kind": "pairwise", "id": "a/b", "revision": "main"}, "should match pattern"),
        ({"kind": "llm", **RUBRIC}, "found neither"),
        ({"kind": "llm", "model": "m", "endpoint": "e", "policy": "base", **RUBRIC}, "found both"),
        ({"kind": "llm", "endpoint": "e", **RUBRIC}, "give both"),
        ({"kind": "llm", "model": "m", "policy": "base", **RUBRIC}, "give both"),
        ({"kind": "verifiable", "match": "choice", "max_missing_share": 1.5}, "it is a share"),
        ({"kind": "rule", "rule": "nicest"}, "Input should be 'longer'"),
        ({"kind": "oracle"}, "kind"),
    ],
)
def test_a_mistake_is_told(given, says):
    with pytest.raises(ValidationError, match=says):
        JUDGE.validate_python(given)


def test_one_judge_ranks_or_several_each_once():
    assert Rank.model_validate({"by": "gold"}) == Rank(by=("gold",), how="cascade")
    for given, says in (({"by": ["gold", "gold"]}, "stands twice"), ({"by": []}, "at least 1"), ({"by": "gold", "how": "vote"}, "cascade")):
        with pytest.raises(ValidationError, match=says):
            Rank.model_validate(given)


def test_pair_rules_have_bounds():
    assert PairRules().stored()["rejected"] == "worst"
    for given in ({"min_margin": -0.1}, {"max_length_ratio": 0.5}, {"per_prompt": 0}, {"chosen": "worst"}, {"truncated": "drop"}):
        with pytest.raises(ValidationError):
            PairRules.model_validate(given)
