"""A judge's card in a real run: a judge that the run trains, on the pairs that it holds out, and the report's words about it.

Covers: train/plan/cards, train/reports/judges.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Pair
from rounds.train.config.cluster import Machine
from rounds.train.judging import card, scores

Run = Callable[..., tuple[Path, dict]]
CPU = Machine(device="cpu", threads=1)
KNOBS = {"learning_rate": 2e-3, "num_train_epochs": 3.0, "global_batch_size": 4, "max_length": 96}


@pytest.fixture
def judge(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]) -> Path:
    tokens, _ = run_stage("tokenize", "pairs", {"max_length": 96, "whole": True}, {"tokenizer": shelf / "base", "data": put("data", pairs)})
    return run_stage("reward", "own", {"training": KNOBS, "seed": 5}, {"policy": shelf / "base", "pairs": tokens}, CPU)[0]


def asked(**fields) -> dict:
    return {"name": "own", "judge": {"kind": "reward_model", "path": "model", "max_length": 96, **fields}}


def test_pairs_are_scored_and_told_by_what_is_wrong(run_stage: Run, shelf: Path, judge: Path, put: Callable, pairs: list[Pair]):
    out, counts = run_stage("card", "card", asked(), {"judge": judge, "preferences.made": put("held-out", pairs)}, CPU)
    made = card.read(out)
    assert (made.pairs, made.whole.n, [each.name for each in made.groups]) == (16, 16, ["", "wrong"])
    rows = list(scores.read(out / scores.RANKS))
    assert len(rows) == 32 and {row.number for row in rows} == {0, 1}
    by_pair = {row.prompt_id: row.score or 0.0 for row in rows if row.number == 0}
    right = sum(by_pair[row.prompt_id] > (row.score or 0.0) for row in rows if row.number == 1)
    assert made.whole.accuracy == right / 16 >= 14 / 16
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    assert made.whole.longer == pytest.approx(longer / 16, abs=2 / 16), "by tokens, not characters"
    assert counts["pairs"] == 16 and counts["missing"] == 0 and counts["cut"] == 0


def test_several_sources_are_told_apart(run_stage: Run, judge: Path, put: Callable, pairs: list[Pair]):
    inputs = {"judge": judge, "preferences.one": put("one", pairs[:8]), "preferences.other": put("other", pairs[8:])}
    out, _ = run_stage("card", "card", asked(), inputs, CPU)
    assert [(each.name, each.n) for each in card.read(out).groups] == [("", 16), ("one/wrong", 8), ("other/wrong", 8)]


def test_a_judge_that_cannot_read_the_pairs_stops_and_says_why(run_stage: Run, judge: Path, put: Callable, pairs: list[Pair]):
    strange = [Pair("x", "made", pairs[0].prompt, "It is.<|eot_id|>", "No.", "wrong"), *pairs]
    inputs = {"judge": judge, "preferences.made": put("held-out", strange)}
    with pytest.raises(UserError, match=r"judge own: 1 of 34 scores are missing .*1 control_token_in_text"):
        run_stage("card", "card", asked(), inputs, CPU)
    out, counts = run_stage("card", "card", asked(max_missing_share=0.1), inputs, CPU)
    assert card.read(out).missing == {"control_token_in_text": 1} and counts["missing"] == 1
    only = put("only", strange[:1])
    with pytest.raises(UserError, match="none of the 1 held-out pairs has a score of both answers"):
        run_stage("card", "none", asked(max_missing_share=1.0), {"judge": judge, "preferences.made": only}, CPU)


def test_two_pairs_of_one_id_are_refused(run_stage: Run, judge: Path, put: Callable, pairs: list[Pair]):
    with pytest.raises(UserError, match="two held-out pairs are called 'made/p0'"):
        run_stage("card", "card", asked(), {"judge": judge, "preferences.made": put("held-out", [pairs[0], pairs[0]])}, CPU)
