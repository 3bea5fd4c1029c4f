"""Rounds on what the policy itself answers: one real run of a small recipe, looked at from all sides, and what is refused before a run.

Covers: train/config/sampling, train/generation/asked, train/judging/asking, train/plan/on_policy, train/reports/own_answers,
train/stages/pairs, train/stages/rank.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Pair, Prompt, prompt_id, read_records
from rounds.train.config import recipe
from rounds.train.config.cluster import Machine
from rounds.train.engine import store
from rounds.train.engine.graph import Stage
from rounds.train.generation import parts, samples
from rounds.train.judging import pairs, scores
from rounds.train.plan.pipeline import Plan, build_plan
from tests import staged
from tests.train import command_line

HERE = Path(__file__).parent
RECIPE, CLUSTER = HERE / "on_policy.yaml", HERE / "mini_cluster.yaml"
Folders = dict[str, Path]


def rounds(*arguments: str | Path, root: Path, expect: int = 0) -> str:
    """Run the command line here and return what it printed."""
    return command_line.here(*arguments, expect=expect, environment={"ROUNDS_STORE": str(root), "COLUMNS": "200"})


def planned(root: Path, *overrides: str) -> Plan:
    return build_plan(recipe.load(RECIPE, overrides), root, HERE)


@pytest.fixture(scope="module")
def ran(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The store of the run. Nobody may change it."""
    return made_once("on-policy", lambda root: rounds("run", RECIPE, "--cluster", CLUSTER, root=root))


@pytest.fixture(scope="module")
def folders(ran: Path) -> Folders:
    return {stage.name: store.folder(ran, stage) for stage in planned(ran).stages}


def own_pairs(folder: Path) -> list[Pair]:
    return [row for row in read_records(folder / "records.parquet") if isinstance(row, Pair)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["first", "second"])
def test_each_prompt_of_the_part_gives_pairs_or_one_reason(folders: Folders, name: str):
    made, dropped = own_pairs(folders[f"pairs.{name}"]), lines(folders[f"pairs.{name}"])
    part = planned(folders["base"].parent).recipe.rounds[("first", "second").index(name)].sample
    assert part
    wanted = {each for each, at in parts.read(folders["prompts.open"]).items() if at == part.part}
    with_pairs, without = {row.group for row in made}, [row["id"] for row in dropped]
    assert with_pairs | set(without) == wanted and not with_pairs & set(without) and len(set(without)) == len(without)
    counts = store.counts(folders[f"pairs.{name}"])
    assert counts["prompts"] == len(wanted) and counts["records"] == counts["pairs"] == len(made) > 5
    assert sum(counts["dropped"].values()) == len(dropped)
    assert {row["reason"] for row in dropped} == set(counts["dropped"])


def test_a_pair_is_two_answers_of_the_policy_before_the_round_with_their_scores_beside(folders: Folders):
    answers = {(row.prompt_id, row.number): row for row in samples.read(folders["sample.first"] / "samples.parquet")}
    said = {(row.prompt_id, row.number): row.score or 0.0 for row in scores.read(folders["rank.first.shorter"] / "ranks.parquet")}
    info = {row["pair_id"]: row for row in pq.read_table(folders["pairs.first"] / pairs.INFO).to_pylist()}
    made = own_pairs(folders["pairs.first"])
    assert set(info) == {row.id for row in made}
    for row in made:
        told = info[row.id]
        chosen, rejected = answers[row.group, told["chosen_number"]], answers[row.group, told["rejected_number"]]
        assert (row.chosen, row.rejected) == (chosen.answer, rejected.answer) and prompt_id(row) == row.group
        assert told["margin"] == said[row.group, chosen.number] - said[row.group, rejected.number] > 0
        assert chosen.tokens < rejected.tokens and chosen.ended


def test_the_system_prompt_that_was_said_is_trained_on_and_no_other(folders: Folders):
    first, second = (own_pairs(folders[f"pairs.{name}"]) for name in ("first", "second"))
    said = HERE.parents[1] / "recipes" / "prompts" / "medical_assistant.md"
    assert {row.prompt[0].content for row in first} == {said.read_text().strip()}
    assert {row.prompt[0].role for row in second} == {"user"}
    assert {row["reason"] for row in lines(folders["pairs.first"])} >= {"too_long"}, "prompts that leave no room are counted too"


def test_no_question_is_asked_in_two_rounds(folders: Folders):
    known = {row.id: row for row in read_records(folders["prompts.open"] / "records.parquet") if isinstance(row, Prompt)}
    registered = "clinic_facts"
    asked = [
        {parts.question_of(known[row.prompt_id], registered) for row in samples.read(folders[f"sample.{name}"] / "samples.parquet")}
        for name in ("first", "second")
    ]
    assert asked[0] and asked[1] and not asked[0] & asked[1]


def test_own_pairs_are_mixed_by_their_share_and_training_begins_at_the_loss_of_two_like_sides(folders: Folders):
    out = store.counts(folders["data.first"])["out"]
    assert out["sampled"] == out["pairs_1"] == store.counts(folders["pairs.first"])["records"]
    assert set(store.counts(folders["data.second"])["out"]) == {"sampled"}
    for name in ("first", "second"):
        first = json.loads((folders[f"dpo.{name}"] / "metrics.jsonl").read_text().splitlines()[0])
        assert math.isclose(first["loss"], math.log(2), abs_tol=1e-4)


def test_in_a_cascade_a_judge_is_asked_of_what_those_before_it_left_open(folders: Folders):
    gold, shorter = (store.counts(folders[f"rank.first.{name}"]) for name in ("gold", "shorter"))
    assert gold["prompts_asked"] == shorter["prompts_asked"] + shorter["prompts_decided_before"]
    decided = store.counts(folders["pairs.first"])["decided_by"]
    assert decided.get("gold", 0) == shorter["prompts_decided_before"] and decided["shorter"]


def test_a_second_run_does_nothing_and_is_told_where_it_was_judged(ran: Path, folders: Folders):
    before = {path: path.stat().st_mtime_ns for path in ran.glob("*/done.json")}
    rounds("run", RECIPE, "--cluster", CLUSTER, root=ran)
    assert {path: path.stat().st_mtime_ns for path in ran.glob("*/done.json")} == before
    assert "pairs.first" in rounds("status", RECIPE, root=ran)
    card = (folders["export"] / "model" / "README.md").read_text()
    assert "gold (verifiable), then by shorter (rule)" in card and "| second | sampled |" in card
    manifest = json.loads((folders["manifest"] / "manifest.json").read_text())
    assert manifest["sources"]["questions"]["asked_in"] == ["prompts.open"] and "sampled" in manifest["sets"]["second"]["sources"]


@pytest.fixture
def reward(folders: Folders, tmp_path: Path) -> Path:
    """A model folder that scores answers: random, of the shape of the run's base."""
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(AutoConfig.from_pretrained(folders["base"] / "model", num_labels=1))
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(folders["base"] / "tokenizer").save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def ranked(
    folders: Folders, out: Path, judge: dict[str, Any], inputs: dict[str, Path]
) -> tuple[dict[tuple[str, int], float | None], dict[str, Any]]:
    out.mkdir()
    read = {"prompts": folders["prompts.open"], "samples": folders["sample.first"], **inputs}
    machine = Machine(device="cpu", threads=1, eval_batch_size=16)
    counts = staged.run("rank_model", {"judge": {**judge, "max_missing_share": 1.0}, "name": "judge"}, read, out, machine)
    return {(row.prompt_id, row.number): row.score for row in scores.read(out / "ranks.parquet")}, counts


def test_models_judge_too_from_a_folder_and_as_a_policy_of_the_run(folders: Folders, reward: Path, tmp_path: Path):
    asked = {(row.prompt_id, row.number) for row in samples.read(folders["sample.first"] / "samples.parquet")}
    weights, rubric = {"kind": "reward_model", "path": "elsewhere"}, {"kind": "llm", "policy": "sft", "rubric": "Which is better?"}
    by_reward, counts = ranked(folders, tmp_path / "reward-says", weights, {"judge": reward})
    assert set(by_reward) == asked and counts["missing"] == sum(value is None for value in by_reward.values())
    assert len({value for value in by_reward.values() if value is not None}) > 20
    by_policy, counts = ranked(folders, tmp_path / "policy-says", rubric, {"judge": folders["sft"]})
    assert set(by_policy) == asked and (tmp_path / "policy-says" / "verdicts.parquet").is_file()
    assert 0 < counts["comparisons"] <= 3 * counts["prompts_asked"]
    rest, counts = ranked(folders, tmp_path / "of-the-rest", rubric, {"judge": folders["sft"], "before.0": tmp_path / "reward-says"})
    assert len(rest) < len(asked) and counts["prompts_decided_before"] + counts["prompts_asked"] == len({name for name, _ in asked})


def test_its_pairs_can_be_looked_at_and_the_report_tells_of_them(ran: Path, folders: Folders):
    shown = rounds("data", "preview", RECIPE, "--pairs", "first", "-n", "2", root=ran)
    assert "2 rows of pairs.first" in shown and ": chosen (" in shown and ": rejected (" in shown
    assert "did you mean 'first'" in rounds("data", "preview", RECIPE, "--pairs", "frist", root=ran, expect=1)
    page = (folders["report"] / "report.html").read_text()
    counts = store.counts(folders["pairs.first"])
    assert 'id="own"' in page and f"{counts['mean_chosen_tokens']} / {counts['mean_rejected_tokens']}" in page
    assert all(f"{reason} {count}" in page for reason, count in counts["dropped"].items())
    assert "first: " in page and "were cut at max_new_tokens" in page


def keys(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan.stages}


@pytest.mark.parametrize(
    ("change", "kept", "anew"),
    [
        ("rounds.first.pairs.rejected=random", ["sample.first", "rank.first.gold", "rank.first.shorter"], ["pairs.first", "dpo.first"]),
        ("rounds.first.rank.by=[gold, shorter, floor]", ["sample.first", "rank.first.gold", "rank.first.shorter"], ["pairs.first"]),
        ("rounds.first.rank.how=mean_of_ranks", ["sample.first", "rank.first.gold"], ["rank.first.shorter", "pairs.first"]),
        ("rounds.first.sample.num_answers=4", ["sft", "prompts.open"], ["sample.first", "rank.first.gold"]),
        ("judges.gold.max_missing_share=0.9", ["rank.first.gold", "pairs.first", "dpo.second"], []),
        ("rounds.second.rank.by=[floor]", ["dpo.first", "sample.second"], ["pairs.second"]),
    ],
)
def test_what_changes_makes_anew_what_hangs_on_it_and_nothing_before(tmp_path: Path, change: str, kept: list[str], anew: list[str]):
    floor = "judges.floor={kind: rule, rule: first}"
    before, after = keys(planned(tmp_path, floor)), keys(planned(tmp_path, floor, change))
    assert [name for name in kept if before[name] != after[name]] == []
    assert [name for name in anew if before[name] == after[name]] == []


def test_a_plan_says_how_much_is_asked_and_needs_no_torch(tmp_path: Path):
    began = time.monotonic()
    shown = rounds("plan", RECIPE, root=tmp_path)
    assert time.monotonic() - began < 5
    assert "120 answers, up to 2,880 tokens" in shown  # a half of 80 prompts, three answers each
    assert "up to 120 answers of 40 prompts by verifiable" in shown and "by rule, less those that were decided before" in shown
    assert "up to 40 pairs" in shown and "sampled 50.0%, pairs_1 50.0%" in shown


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    data = yaml.safe_load(RECIPE.read_text())
    edit(data)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return folder / "recipe.yaml"


def set_round(number: int, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["rounds"][number].update(fields)


def without(number: int, field: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["rounds"][number].pop(field)


def sample(number: int, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["rounds"][number]["sample"].update(fields)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (without(0, "rank"), r"rounds\.0\.rank: required with `sample`"),
        (set_round(0, data=["pairs_1"]), r"rounds\.0\.data: names no 'sampled'"),
        (lambda data: (without(1, "sample")(data), without(1, "pairs")(data)), r"rounds\.1\.rank: goes with `sample`"),
        (
            lambda data: [without(1, field)(data) for field in ("sample", "rank", "pairs")],
            r"rounds\.second\.data: 'sampled' are the pairs of the round's own answers, and the round has no `sample`",
        ),
        (sample(0, prompts="opne"), r"rounds\.first\.sample\.prompts: no set is named 'opne' .* did you mean 'open'\?"),
        (sample(1, part=3), r"rounds\.second\.sample\.part: found 3, and prompts\.open has parts: 2"),
        (sample(1, part=1), r"rounds\.second\.sample\.part: round 'first' answers part 1 of open already.*take part 2"),
        (set_round(0, rank={"by": "golf"}), r"rounds\.first\.rank\.by: no judge is named 'golf' .* did you mean 'gold'\?"),
        (lambda data: data["sources"].update(sampled=data["sources"]["pairs_1"]), r"sources\.sampled: a round's own pairs have this name"),
        (sample(0, num_answers=1), r"rounds\.0\.sample\.num_answers: expected 2 to 1,000, found 1: a pair is made of two answers"),
        (sample(0, temperature=0), r"rounds\.0\.sample\.temperature: .*greedy answers are all the same"),
        (sample(0, max_new_tokens=256), r"rounds\.0\.sample\.max_new_tokens: expected less than the round's max_length 256"),
        (sample(0, system_prompt="none.md"), r"rounds\.first\.sample\.system_prompt: .*none\.md: no such file"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(tmp_path: Path, edit: Callable, says: str):
    with pytest.raises(UserError, match=says):
        build_plan(recipe.load(edited(tmp_path, edit)), tmp_path / "store", tmp_path)


def test_a_recipe_without_rounds_of_its_own_answers_has_none_of_their_stages(tmp_path: Path):
    plan = build_plan(recipe.load(HERE / "mini.yaml"), tmp_path, HERE)
    assert not [stage for stage in plan.stages if stage.kind.ranks or stage.kind.pairs_up or stage.kind.asks]
    assert all(isinstance(stage, Stage) for stage in plan.stages)
