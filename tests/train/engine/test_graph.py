"""A stage's key: what changes it, what does not, and that computing it stays cheap.

Covers: train/engine/kinds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr

from rounds.data_prep.schema import Section
from rounds.train.engine.graph import KEY_LENGTH, Asset, Stage, canonical_json, parents_first
from rounds.train.engine.kinds import Kind
from tests import staged

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
params = st.dictionaries(st.text(max_size=4), values, max_size=4)


KIND = Kind("dpo", "nowhere:run", "nowhere:Plain", 1)


class Plain(Section):
    values: Any


def stage(**changes: Any) -> Stage:
    fields: dict[str, Any] = {"name": "dpo.first", "kind": KIND, "params": {"beta": 0.1, "seed": 0},
                              "inputs": {"policy": Asset(Path("a"), "one"), "pairs": Asset(Path("b"), "two")}} | changes  # fmt: skip
    return Stage(**{**fields, "params": Plain(values=fields["params"])})


def backwards(value: Any) -> Any:
    """The same JSON with every object's fields in the other order."""
    if isinstance(value, dict):
        return {key: backwards(inner) for key, inner in reversed(value.items())}
    return [backwards(inner) for inner in value] if isinstance(value, list) else value


@given(params)
def test_the_order_of_fields_is_not_in_the_key(given_params: dict):
    assert stage(params=given_params).key == stage(params=backwards(given_params)).key
    assert canonical_json(given_params) == canonical_json(backwards(given_params))


@given(params, params)
def test_other_params_are_another_key_and_the_same_params_the_same(one: dict, two: dict):
    # Compared as JSON text: Python holds 1, 1.0 and True for equal.
    same = canonical_json(one) == canonical_json(two)
    assert (stage(params=one).key == stage(params=two).key) == same


@pytest.mark.parametrize(
    "changes",
    [{"name": "dpo.other"}, {"kind": replace(KIND, row="train")}, {"kind": replace(KIND, after_stop=True)},
     {"kind": replace(KIND, code="elsewhere:run")},
     {"inputs": {"pairs": Asset(Path("elsewhere"), "two"), "policy": Asset(Path("c"), "one")}}],
    ids=str,
)  # fmt: skip
def test_names_machines_paths_and_order_are_not_in_the_key(changes: dict):
    assert stage(**changes).key == stage().key


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": replace(KIND, name="sft")},
        {"kind": replace(KIND, version=2)},
        {"stored_version": 2},
        {"params": {"beta": 0.2, "seed": 0}},
        {"params": {"beta": 0.1}},
        {"params": {"beta": 0.1, "seed": None}},
        {"params": {"beta": 0.1, "seed": "0"}},
        {"inputs": {"policy": Asset(Path("a"), "ONE"), "pairs": Asset(Path("b"), "two")}},
        {"inputs": {"policy": Asset(Path("a"), "two"), "pairs": Asset(Path("b"), "one")}},
        {"inputs": {"start": Asset(Path("a"), "one"), "pairs": Asset(Path("b"), "two")}},
        {"inputs": {"policy": Asset(Path("a"), "one")}},
        {"inputs": {}},
    ],
    ids=str,
)
def test_function_version_params_and_every_input_are_in_the_key(changes: dict):
    assert stage(**changes).key != stage().key


def test_a_change_far_up_changes_every_key_below():
    def chain(seed: int) -> list[Stage]:
        first = staged.stage("a", "a", {"seed": seed})
        second = staged.stage("b", "b", {}, {"in": first})
        return [first, second, staged.stage("c", "c", {}, {"in": second})]

    assert all(one.key != two.key for one, two in zip(chain(0), chain(1), strict=True))


def test_the_folder_is_named_by_function_and_key():
    assert stage().folder_name == f"dpo-{stage().key}"
    assert len(stage().key) == KEY_LENGTH and int(stage().key, 16) >= 0


@pytest.mark.parametrize(
    "value",
    [{1, 2}, Path("a"), b"a", object(), {"a": staged.stage("a", "a", {})}],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_json_is_a_type_error(value: Any):
    with pytest.raises(TypeError):
        canonical_json({"value": value})
    with pytest.raises(TypeError):
        _ = stage(params={"value": value}).key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_a_value_error(value: float):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([value])


def test_a_field_name_that_is_no_text_is_not_silently_made_one():
    """JSON would write {1: ...} and {"1": ...} alike: two params, one key."""
    with pytest.raises(TypeError):
        canonical_json({1: "a"})


def test_canonical_json_is_one_text():
    assert canonical_json({"b": [1, 2.5, None], "a": "ü"}) == '{"a":"\\u00fc","b":[1,2.5,null]}'


# Order


def names(stages: list[Stage]) -> list[str]:
    return [each.name for each in stages]


def test_parents_come_first_and_each_stage_once_in_a_diamond():
    top = staged.stage("top", "top", {})
    left, right = staged.stage("left", "left", {}, {"in": top}), staged.stage("right", "right", {}, {"in": top})
    bottom = staged.stage("bottom", "bottom", {}, {"left": left, "right": right, "top": top, "file": Asset(Path("a"), "x")})
    assert names(parents_first([bottom])) == ["top", "left", "right", "bottom"]
    assert names(parents_first([right, bottom, left])) == ["top", "right", "left", "bottom"]
    assert parents_first([]) == []


def test_two_stages_of_one_key_are_one():
    one, two = staged.stage("one", "a", {}), staged.stage("two", "a", {})
    assert names(parents_first([staged.stage("c", "c", {}, {"one": one, "two": two})])) == ["one", "c"]


@given(st.lists(st.lists(st.integers(0, 10), max_size=3), min_size=1, max_size=10))
def test_parents_come_first_in_any_graph(wiring: list[list[int]]):
    made: list[Stage] = []
    for place, parents in enumerate(wiring):
        made.append(staged.stage(str(place), "f", {"place": place}, {str(p): made[p] for p in parents if p < place}))
    order = parents_first(reversed(made))
    assert sorted(names(order)) == sorted(names(made))
    for place, each in enumerate(order):
        assert {parent.key for parent in each.parents} <= {before.key for before in order[:place]}


# Cost


class Counted(Section):
    """Params that count how often they are read for a key."""

    place: int
    _reads: list[int] = PrivateAttr(default_factory=list)

    def stored(self, exclude: set[str] | None = None) -> dict[str, Any]:
        self._reads[self.place] += 1
        return super().stored(exclude)


def counted(reads: list[int], place: int) -> Counted:
    params = Counted(place=place)
    params._reads = reads
    return params


def rounds(count: int, reads: list[int]) -> Stage:
    """Rounds as in a plan: the next one needs the policy, its scores, and what was made of both."""
    policy = Stage("policy", KIND, counted(reads, 0))
    for place in range(1, count + 1):
        new = Stage(f"dpo.{place}", KIND, counted(reads, place), {"policy": policy, "reference": policy})
        scores = staged.stage(f"evaluate.{place}", "evaluate", {"place": place}, {"policy": new})
        policy = staged.stage(f"gate.{place}", "gate", {"place": place}, {"old": policy, "new": new, "scores": scores})
    return policy


def test_every_stage_is_hashed_once_however_many_ways_lead_to_it():
    reads = [0] * 41
    last = rounds(40, reads)  # uncached, the first would be read 5**40 times
    assert len(parents_first([last])) == 121
    assert reads == [1] * 41


def test_many_rounds_do_not_exhaust_the_stack():
    reads = [0] * 201
    assert len(parents_first([rounds(200, reads)])) == 601
