"""Pairs within a token budget: prompts are never cut, sides share what is left, and equal sides are dropped.

Covers: train/tokens/pair_budget.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Pair
from rounds.train.tokens.chat import EncodedPair
from rounds.train.tokens.pair_budget import fit

Run = Callable[..., tuple[Path, dict]]


def made(prompt: int, chosen: int, rejected: int) -> EncodedPair:
    """A pair of these lengths whose sides differ from the first token on."""
    return EncodedPair([1] * prompt, [2] * chosen, [3] * rejected)


def test_what_fits_is_left_alone():
    pair = made(10, 40, 50)
    assert fit(pair, 60) == pair


@pytest.mark.parametrize(
    ("lengths", "max_length", "kept"),
    [
        ((10, 60, 20), 50, (40, 20)),
        ((10, 20, 60), 50, (20, 40)),
        ((10, 60, 70), 50, (40, 40)),
        ((18, 60, 70), 50, (32, 32)),
        ((45, 5, 5), 50, (5, 5)),
    ],
)
def test_both_sides_are_cut_at_the_end_to_what_the_prompt_leaves(lengths: tuple, max_length: int, kept: tuple[int, int]):
    fitted = fit(made(*lengths), max_length)
    assert isinstance(fitted, EncodedPair)
    assert (len(fitted.chosen_ids), len(fitted.rejected_ids)) == kept


@pytest.mark.parametrize("lengths", [(50, 1, 1), (60, 1, 1), (46, 5, 3), (46, 3, 5), (19, 60, 70), (19, 60, 3)])
def test_a_prompt_that_leaves_too_little_room_drops_the_pair(lengths: tuple):
    assert fit(made(*lengths), 50) == "prompt_too_long"


def test_sides_that_were_equal_and_sides_that_became_equal_have_their_own_reasons():
    same = list(range(60))
    assert fit(EncodedPair([1] * 10, same, list(same)), 100) == "identical_sides"
    assert fit(EncodedPair([1] * 10, same, [*same[:50], 99]), 50) == "identical_after_truncation"
    assert fit(EncodedPair([1] * 10, same, list(same)), 50) == "identical_sides"


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=80)


@given(prompt=tokens, chosen=tokens, rejected=tokens, max_length=st.integers(2, 120))
def test_nothing_is_longer_than_the_budget_and_no_prompt_is_cut(prompt: list, chosen: list, rejected: list, max_length: int):
    pair = EncodedPair(prompt, chosen, rejected)
    fitted = fit(pair, max_length)
    if isinstance(fitted, str):
        assert fitted in ("prompt_too_long", "identical_sides", "identical_after_truncation")
        longest = max(len(chosen), len(rejected))
        assert chosen == rejected or len(prompt) + longest > max_length, "a pair that fits was dropped"
        return
    assert fitted.prompt_ids == prompt
    for side, whole in ((fitted.chosen_ids, chosen), (fitted.rejected_ids, rejected)):
        assert 0 < len(side) <= max_length - len(prompt)
        assert side == whole[: len(side)]
        assert len(side) == min(len(whole), max_length - len(prompt))
    assert fitted.chosen_ids != fitted.rejected_ids


def test_the_stage_keeps_drops_and_counts(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]):
    same = replace(pairs[0], id="same", rejected=pairs[0].chosen)
    control = replace(pairs[0], id="control", rejected="<|eot_id|>")
    long = replace(pairs[0], id="long", prompt=(replace(pairs[0].prompt[0], content="Why? " * 60),))
    cut = replace(pairs[0], id="cut", chosen="It does. " * 60)
    inputs = {"tokenizer": shelf / "base", "data": put("data", [*pairs, same, control, long, cut])}
    out, counts = run_stage("tokenize", "pairs", {"max_length": 120}, inputs)
    assert counts["dropped"] == {"identical_sides": 1, "control_token_in_text": 1, "prompt_too_long": 1}
    assert (counts["pairs"], counts["cut"]) == (17, 1)
    rows = {row["id"]: row for row in pq.read_table(out / "pairs.parquet").to_pylist()}
    assert list(rows) == [*(pair.id for pair in pairs), "cut"]
    assert rows["p0"]["group"] == "wrong"
    assert len(rows["cut"]["prompt_ids"]) + len(rows["cut"]["chosen_ids"]) == 120
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert {each["id"]: each["reason"] for each in dropped} == {
        "same": "identical_sides",
        "control": "control_token_in_text",
        "long": "prompt_too_long",
    }
    assert "Why?" not in (out / "dropped.jsonl").read_text()
    for name in ("prompt", "chosen", "rejected"):
        lengths = [len(row[f"{name}_ids"]) for row in rows.values()]
        assert counts[f"mean_{name}_tokens"] == round(sum(lengths) / len(lengths), 1)
    made = counts["by_source"]["made"]
    assert (made["rows"], made["dropped"], made["longest"]) == (17, counts["dropped"], 120)
    assert made["answer_tokens"] == sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows.values())
    assert sum(made["histogram"].values()) == 17


def test_no_pair_left_is_a_user_error(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]):
    inputs = {"tokenizer": shelf / "base", "data": put("data", pairs)}
    with pytest.raises(UserError, match=r"no pair is left.*prompt_too_long"):
        run_stage("tokenize", "pairs", {"max_length": 8}, inputs)
