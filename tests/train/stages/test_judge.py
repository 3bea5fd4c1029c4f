"""Two policies' answers compared: what wins, what is missing, whose answers they are behind a gate, and what a gate makes of it.

Covers: train/judging/comparing.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message, Question
from rounds.train.config.evaluation import Rule
from rounds.train.engine import policy, store
from rounds.train.evaluation.paired import read_items
from rounds.train.generation import samples
from rounds.train.generation.samples import Sample
from rounds.train.judging import scores, verdicts
from rounds.train.stages.gate import judge_win_rate
from tests import staged
from tests.train.conftest import ASKED, FACTS

Run = Callable[..., tuple[Path, dict]]
Answers = Callable[..., Path]
RIGHT = {"kind": "verifiable", "match": "choice"}
LONGER = {"kind": "rule", "rule": "longer"}
ITSELF = {"kind": "llm", "rubric": "Which answer is better?"}
NUMBER = 32


def params(judge: dict) -> dict:
    return {"metric": "med", "answers": "open", "judge": judge, "name": "right"}


@pytest.fixture
def questions(put: Callable) -> Path:
    asked = [(Message("user", f"Which one, in case {number}?"),) for number in range(NUMBER)]
    rows = [Question(f"q{number:02}", "made", prompt, ("iron", "zinc"), 0) for number, prompt in enumerate(asked)]
    return put("questions", rows)


@pytest.fixture
def answers(shelf: Path) -> Answers:
    """Write what a policy answered, as stage `answers` does: the texts by the place of the prompt, "qNN"."""

    def write(name: str, texts: Sequence[str], made_by: str = "base") -> Path:
        folder = shelf / f"answers-{name}"
        folder.mkdir()
        store.write_json(folder / "stage.json", staged.described(f"answers.{name}", {}, {"policy": {"stage": made_by}}))
        rows = [
            Sample(f"q{place:02}", 0, text, [1] * len(text.split()), len(text.split()), True, -1.0, place)
            for place, text in enumerate(texts)
        ]
        samples.write(samples.file_of(folder, "open"), samples.table(rows))
        return folder

    return write


def test_the_right_answer_wins_and_what_names_no_choice_is_missing(run_stage: Run, questions: Path, answers: Answers):
    new = answers("first", ["iron"] * 20 + ["zinc"] * 8 + ["nothing"] * 4)
    old = answers("sft", ["zinc"] * 12 + ["iron"] * 20)
    out, told = run_stage("judge", "judged", params(RIGHT), {"answers": new, "against": old, "prompts": questions})
    assert (told["policy"], told["against"]) == ("first", "sft")
    assert told["winrate"]["value"] == pytest.approx((12 + 8 / 2) / 28, abs=1e-4), "12 won, 8 both right, 8 lost: of 28"
    assert (told["prompts"], told["prompts_missing"], told["missing"], told["parsed_share"]) == (NUMBER, 4, 4, 0.875)
    assert (told["flip_share"], told["first_place_share"]) == (None, None), "single scores know no places"
    assert (told["mean_score"], told["mean_score_against"]) == (round(20 / 28, 4), 0.625)
    given = store.scores(out)
    assert given["med/winrate"].value == pytest.approx(16 / 28) and given["med/winrate"].n == 28
    assert given["med/winrate"].stderr and given["med/winrate_lc"].value == pytest.approx(16 / 28, abs=0.02), "no length differs"
    values = read_items(out)["med/winrate"]
    assert (values["q00"], values["q12"], values["q20"], "q28" in values) == (1.0, 0.5, 0.0, False)
    assert sum(each.score or 0 for each in scores.read(out / "scores_answers.parquet")) == 20
    assert pq.read_table(out / verdicts.VERDICTS).num_rows == NUMBER


def test_too_much_without_a_verdict_ends_the_stage(run_stage: Run, questions: Path, answers: Answers):
    new, old = answers("first", ["iron"] * 28 + ["nothing"] * 4), answers("sft", ["iron"] * NUMBER)
    inputs = {"answers": new, "against": old, "prompts": questions}
    with pytest.raises(UserError, match=r"judge right: 4 of 36 scores are missing"):
        run_stage("judge", "few", params({**RIGHT, "max_missing_share": 0.1}), inputs)
    inputs["answers"] = answers("second", ["nothing"] * NUMBER)
    with pytest.raises(UserError, match=r"judge right: none of 32 comparisons has a verdict .*, so there is no win rate"):
        run_stage("judge", "none", params(RIGHT), inputs)
    inputs["answers"] = answers("third", [])
    with pytest.raises(UserError, match="answered not one common prompt of 'open'"):
        run_stage("judge", "nobody", params(RIGHT), inputs)


def test_a_policy_that_only_got_longer_is_refused_at_equal_length(run_stage: Run, questions: Path, answers: Answers):
    new = answers("first", ["iron" + " and so on" * (1 + number % 3) for number in range(NUMBER)])
    old = answers("sft", ["iron"] * NUMBER)
    out, told = run_stage("judge", "judged", params(LONGER), {"answers": new, "against": old, "prompts": questions})
    assert (told["winrate"]["value"], told["agrees_with_longer_share"], told["longer_share"]) == (1.0, 1.0, 1.0)
    assert told["tokens"] > told["tokens_against"] == 1.0
    given = store.scores(out)
    raw, level = (
        judge_win_rate(Rule(metric=metric, at_least=0.5, beyond=2), given[metric], "sft") for metric in ("med/winrate", "med/winrate_lc")
    )
    assert raw.holds and not level.holds, "won by length alone"
    assert "med/winrate 1.0000 over the answers of sft" in raw.says and level.says.endswith("does not hold")


def test_a_policy_as_judge_is_asked_in_both_orders_and_of_no_equal_words(run_stage: Run, shelf: Path, put: Callable, answers: Answers):
    talks = [
        Conversation(
            f"q{number:02}", "made", (Message("user", ASKED[number % 4].format(FACTS[number % 8][0])), Message("assistant", "Yes."))
        )
        for number in range(16)
    ]
    new = answers("first", ["It helps.", *(f"It {FACTS[number % 8][1]}." for number in range(1, 16))])
    old = answers("sft", ["It helps."] * 16)
    inputs = {"prompts": put("talks", talks), "judge": shelf / "base"}
    judge = {**ITSELF, "policy": "base"}
    out, told = run_stage("judge_model", "there", params(judge), {**inputs, "answers": new, "against": old})
    assert told["remarks"] == {"same_words": 1} and told["comparisons"] == 16 and told["parsed_share"] == 1.0
    assert told["flip_share"] is not None and told["first_place_share"] is not None
    back, turned = run_stage("judge_model", "back", params(judge), {**inputs, "answers": old, "against": new})
    assert store.scores(out)["med/winrate"].value == pytest.approx(1 - store.scores(back)["med/winrate"].value)
    assert told["first_place_share"] == turned["first_place_share"], "the place that it prefers is the judge's own"


@pytest.mark.parametrize("passed", ["sft", "first"])
def test_behind_a_gate_the_answers_are_those_of_the_policy_that_it_let_through(
    run_stage: Run, shelf: Path, questions: Path, answers: Answers, passed: str
):
    for name in ("sft", "first", "gate"):
        (shelf / name).mkdir()
    for name in ("sft", "first"):
        policy.write_weights(shelf / name, shelf / "base")
    policy.write_same(shelf / "gate", shelf / passed)
    made = {f"against.{name}": answers(name, ["zinc"] * NUMBER, name) for name in ("sft", "first")}
    new = answers("second", ["iron"] * NUMBER)
    _, told = run_stage("judge", "judged", params(RIGHT), {"answers": new, "against_policy": shelf / "gate", "prompts": questions, **made})
    assert (told["against"], told["winrate"]["value"]) == (passed, 1.0)


@pytest.mark.parametrize(
    ("rule", "holds"),
    [({"at_least": 0.5}, True), ({"at_least": 0.5, "beyond": 1}, True), ({"at_least": 0.5, "beyond": 4}, False), ({"at_most": 0.5}, False)],
    ids=str,
)
def test_a_gates_rule_goes_by_the_comparisons_own_error(
    run_stage: Run, shelf: Path, questions: Path, answers: Answers, rule: dict, holds: bool
):
    """A real gate over a real comparison: 14 won, 4 lost, 14 tied of 32, a rate of .66 with an error of .06."""
    new, old = answers("first", ["iron"] * 28 + ["zinc"] * 4), answers("sft", ["zinc"] * 14 + ["iron"] * 18)
    out, _ = run_stage("judge", "judged", params(RIGHT), {"answers": new, "against": old, "prompts": questions})
    store.write_json(out / "done.json", {"status": "done", "counts": {"against": "sft"}})
    for name in ("old", "new"):
        (shelf / name).mkdir()
        store.write_json(shelf / name / "scores.json", {})
        (shelf / name / "items.parquet").write_bytes((out / "items.parquet").read_bytes())
        policy.write_weights(shelf / name, shelf / "base")
    inputs = {"current": shelf / "old", "candidate": shelf / "new", "current_scores": shelf / "old", "candidate_scores": shelf / "new"}
    _, told = run_stage("gate", "gate", {"rules": [{"metric": "med/winrate", **rule}]}, {**inputs, "judged.med": out})
    assert told["decision"] == ("accepted" if holds else "rejected"), told["reasons"]
    assert "over the answers of sft (standard error 0.06" in told["reasons"][0]
