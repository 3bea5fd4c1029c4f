"""A judge's card in a real run: a judge that the run trains, on the pairs that it holds out, and the report's words about it.

Covers: train/plan/cards, train/reports/judges.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Pair
from rounds.train.config.cluster import Machine
from rounds.train.judging import card, scores
from tests.train.command_line import here
from tests.train.conftest import MINI, MINI_CLUSTER, REPOSITORY

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


def only(store: Path, name: str) -> Path:
    (found,) = store.glob(f"{name}-*")
    return found


TRAINED = "kind: trained, max_length: 256, global_batch_size: {}, learning_rate: {}"


def test_a_run_trains_its_judge_and_its_report_tells_how_far_to_believe_it(undisturbed: Path, tmp_path: Path):
    """Only what is of the judge is made; the policies are those of the run without it."""
    store = Path(shutil.copytree(undisturbed, tmp_path / "store"))
    judges = f"judges={{own: {{{TRAINED.format(4, 1e-3)}, data: [pairs_1]}}, longer: {{kind: rule, rule: longer}}}}"
    asked = (MINI, "--store", store, "--set", judges)
    planned = here("plan", *asked)
    assert "reward.own" in planned and "card.own" in planned and "card.longer" not in planned
    printed = here("run", *asked, "--cluster", MINI_CLUSTER)
    assert "right in 0." in printed and "sft starts" not in printed
    made = card.read(only(store, "card"))
    assert made.pairs == 24 and {each.name for each in made.groups} == {"", "unsafe", "evasive", "wrong"}
    page = max(store.glob("report-*/report.html"), key=lambda path: path.stat().st_mtime).read_text()
    assert '<h2 id="cards">Judges' in page and "are too few to know own by" in page
    assert "A reward model that this run trained on 60 pairs in 15 steps." in page and "judge own" in page
    assert "reward.own" in here("status", *asked)


@pytest.mark.slow
def test_the_quickstarts_own_judge_sees_unsafe_and_evasive_answers_and_is_blind_to_wrong_facts(tmp_path: Path):
    """Seen: all .830 of 534 (.795 to .859), the longer answer .657; unsafe and evasive 1.000 of 178, wrong .489 of 178 (.407 to .571)."""
    judges = f"judges={{own: {{{TRAINED.format(16, 1e-4)}, num_train_epochs: 2, data: [pairs_1, pairs_2, pairs_3]}}}}"
    here("run", REPOSITORY / "recipes" / "quickstart.yaml", "--store", tmp_path, "--set", judges, "--until", "card.own")
    made = card.read(only(tmp_path, "card"))
    groups = {each.name: each for each in made.groups}
    print({name: (each.n, round(each.accuracy, 3), round(each.low, 3), round(each.high, 3)) for name, each in groups.items()})
    assert made.pairs == 534 and made.whole.standing == "above its floor" and 0.75 < made.whole.accuracy < 0.9
    assert groups["unsafe"].accuracy > 0.95 and groups["evasive"].accuracy > 0.95
    assert [each.name for each in made.blind] == ["wrong"] and "where the rejected answer is 'wrong'" in made.says[0]
