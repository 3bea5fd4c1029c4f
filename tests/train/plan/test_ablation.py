"""Ablations as graphs: what variants share, what each adds, and how a mistake is told; and one run for real.

Covers: train/commands/ablate, train/display/ablation, train/launch/compare.
"""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe
from rounds.train.engine import store
from rounds.train.plan import ablation
from rounds.train.plan.ablation import AblationPlan
from rounds.train.plan.pipeline import build_plan
from tests.train import command_line
from tests.train.plan.test_pipeline import BLOCKED, REPOSITORY

ABLATIONS = sorted((REPOSITORY / "recipes" / "ablations").glob("*.yaml"))
ON_QUICKSTART = REPOSITORY / "recipes" / "ablations" / "quickstart.yaml"
MINI = Path(__file__).parents[1] / "mini_ablation.yaml"

Planner = Callable[..., AblationPlan]


@pytest.fixture
def plan(tmp_path: Path) -> Planner:
    """Plan an ablation of the quickstart, given its variants and what else is to differ."""

    def make(variants: dict, *overrides: str, **fields: object) -> AblationPlan:
        file = tmp_path / "made.yaml"
        given = {"name": "made", "base": str(REPOSITORY / "recipes" / "quickstart.yaml"),
                 "baseline": next(iter(variants)), "variants": variants, **fields}  # fmt: skip
        file.write_text(yaml.safe_dump(given, sort_keys=False))
        return ablation.build_plan(file, tmp_path / "store", overrides)

    return make


def keys(made: AblationPlan, variant: str) -> set[str]:
    return {stage.key for stage in made.stages_of(variant)}


def test_an_unchanged_variant_has_the_keys_of_the_recipe_itself(plan: Planner, tmp_path: Path):
    """So an ablation goes on from the store of an ordinary run, and the other way round."""
    made = plan({"all": None})
    own = build_plan(recipe.load(REPOSITORY / "recipes" / "quickstart.yaml"), tmp_path / "store", REPOSITORY / "recipes")
    assert keys(made, "all") < {stage.key for stage in own.stages}
    left_out = {stage.name for stage in own.stages if stage.key not in keys(made, "all")}
    assert left_out == {"answers.base", "evaluate.base", "manifest", "export", "report"}


def test_a_later_change_shares_everything_before_it(plan: Planner):
    made = plan({"all": None, "beta": {"set": {"rounds.third.beta": 0.3}}}, "gate=null")
    own = {stage.name for stage in made.shared if stage.key in keys(made, "beta") - keys(made, "all")}
    assert own == {"dpo.third@beta", "answers.third@beta", "evaluate.third@beta"}


def test_only_the_last_policy_of_a_variant_is_measured_unless_a_gate_asks(plan: Planner):
    ungated, gated = plan({"all": None}, "gate=null"), plan({"all": None})
    assert [s.name for s in ungated.shared if s.kind.name == "evaluate"] == ["evaluate.third"]
    assert [s.name for s in gated.shared if s.kind.name == "evaluate"] == [
        "evaluate.sft",
        "evaluate.first",
        "evaluate.second",
        "evaluate.third",
    ]


def test_dropping_sft_keeps_the_tokenizer_and_so_the_tokens(plan: Planner):
    variants = {"all": None, "dpo-only": {"drop": ["sft"]}}
    made = plan(variants, every={"set": {"base.tokenizer_data": ["facts"], "gate": None}})
    names = {stage.name for stage in made.shared if stage.key in keys(made, "all") & keys(made, "dpo-only")}
    assert {"base", "tokenize.first", "tokenize.second", "tokenize.third"} <= names
    with pytest.raises(UserError, match=r"variants\.dpo-only.*tiny.*base\.tokenizer_data"):
        plan(variants)


def test_swapped_rounds_share_their_data(plan: Planner):
    made = plan({"all": None, "swapped": {"rounds": ["second", "first", "third"]}}, "gate=null")
    names = {stage.name for stage in made.shared if stage.key in keys(made, "all") & keys(made, "swapped")}
    assert {"sft", "tokenize.first", "tokenize.second", "tokenize.third"} <= names
    assert not any(name.startswith("dpo") for name in names)


def test_names_of_stages_differ_and_parents_come_first(plan: Planner):
    variants = {"all": None, "b": {"set": {"rounds.*.beta": 0.3}}, "c": {"set": {"rounds.*.beta": 0.4}}}
    made = plan(variants, seeds=[0, 1])
    names = [stage.name for stage in made.stages]
    assert len(names) == len(set(names))
    assert {"dpo.first", "dpo.first@all", "dpo.first@b", "dpo.first@b.seed1"} <= set(names)
    seen: set[int] = set()
    for stage in made.stages:
        assert all(id(parent) in seen for parent in stage.parents), stage.name
        seen.add(id(stage))


def test_a_seed_is_a_run_of_its_own_that_shares_the_sources(plan: Planner):
    made = plan({"all": None}, "gate=null", seeds=[0, 1])
    first, second = made.cells
    shared = {stage.kind.name for stage in first.stages} & {
        s.kind.name for s in second.stages if s.key in {stage.key for stage in first.stages}
    }
    assert shared == {"source"}


def test_the_report_knows_the_variants_scores_and_what_each_changes(plan: Planner):
    made = plan({"all": None, "lora": {"set": {"sft.lora": {"r": 4}}}, "short": {"rounds": [0]}}, "gate=null")
    params = made.stages[-1].params.stored()
    assert params["variants"]["all"]["changes"] == []
    assert params["variants"]["short"]["changes"] == ["rounds: first, second, third → first"]
    assert params["variants"]["lora"]["changes"][0].startswith("sft.lora: none → r 4, lora_alpha 32")
    assert params["variants"]["short"]["cells"][0]["scores"] == made.cells[2].plan.scores.folder_name
    assert set(made.stages[-1].inputs) == {stage.folder_name for stage in made.shared}


def test_a_failed_stage_takes_only_its_variants_from_the_report(plan: Planner):
    made = plan({"all": None, "short": {"rounds": [0]}, "beta": {"set": {"rounds.third.beta": 0.3}}}, "gate=null")
    lost = next(stage.key for stage in made.shared if stage.name == "dpo.third@beta")
    report = made.without({lost: "no space"}).stages[-1]
    assert list(report.params.stored()["variants"]) == ["all", "short"]
    assert report.params.stored()["missing"] == {"beta": "no space"}
    with pytest.raises(UserError, match="baseline 'all' did not finish: no space"):
        made.without({made.stages[0].key: "no space"})
    short = next(stage.key for stage in made.shared if stage.name == "evaluate.first")
    with pytest.raises(UserError, match=r"only the baseline 'all' finished.*short: slow; beta: no space"):
        made.without({lost: "no space", short: "slow"})


@pytest.mark.parametrize(
    ("fields", "needles"),
    [
        ({"baseline": "al"}, ["made.yaml:3: baseline", "did you mean 'all'?"]),
        ({"variants": {"all": {"dorp": ["sft"]}}}, ["variants.all.dorp", "did you mean 'drop'?"]),
        ({"variants": {"all": {"drop": ["rounds.frist"]}}}, ["variants.all.drop.rounds.frist", "'first'"]),
        ({"variants": {"all": {"set": {"rounds.0.betta": 1}}}}, ["variants.all: rounds.0.betta", "did you mean 'beta'?"]),
        ({"variants": {"all": {"set": {"rounds.0.beta": -1}}}}, ["variants.all: rounds.0.beta", "greater than 0"]),
        ({"variants": {"all": {"set": {"rounds.1.reference": "frist"}}}}, ["variants.all", "rounds.second.reference"]),
        ({"variants": {"all": {"rounds": [0], "set": {"gate.rules.0.metric": "x"}}}}, ["variants.all", "'x'"]),
        ({"every": {"drop": ["evaluate"]}}, ["evaluate"]),
        ({"grid": {"rounds.0.beta": [-1]}}, ["grid beta=-1", "greater than 0"]),
        ({"grid": {"rounds.*.beta": []}}, ["grid.rounds.*.beta"]),
        ({"base": "none.yaml"}, ["none.yaml", "no such file"]),
        ({"seeds": [-1]}, ["seeds.0"]),
    ],
)  # fmt: skip
def test_a_mistake_names_the_variant_and_the_field(plan: Planner, fields: dict, needles: list[str]):
    with pytest.raises(UserError) as error:
        plan(fields.pop("variants", {"all": None}), **fields)
    message = str(error.value)
    assert all(needle in message for needle in needles), message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("file", ABLATIONS, ids=lambda file: file.stem)
def test_every_ablation_of_the_project_is_planned_without_torch(file: Path, tmp_path: Path):
    code = BLOCKED + "from rounds.train.cli import main; main()"
    command = [sys.executable, "-c", code, "plan", str(file), "--store", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Cost: " in result.stdout


def test_the_plan_of_the_8b_ablation_tells_its_gpu_hours_where_the_gpus_are_known(tmp_path: Path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(
        "train: {device: cuda, gpu: h100-80, nodes: 2, processes: 8, precision: bf16, micro_batch_size: 2,\n"
        "        deepspeed: deepspeed/zero3.json, activation_checkpointing: true}\n"
        "infer: {device: cuda, gpu: h100-80, precision: bf16}\n"
    )
    output = rounds("plan", REPOSITORY / "recipes" / "ablations" / "stages.yaml", "--cluster", cluster, store=tmp_path)
    whole, apart, share = re.findall(r"Training and evaluation: ([\d.]+) GPU-hours; each variant alone ([\d.]+): (\d+) %", output)[0]
    assert 0 < float(whole) < 0.4 * float(apart) and int(share) == round(100 * float(whole) / float(apart))
    assert "not known" not in output


@pytest.mark.parametrize("file", [each for each in ABLATIONS if each.stem != "on-policy"], ids=lambda file: file.stem)
def test_the_stage_ablation_has_its_variants_and_shares_most_of_their_work(file: Path, tmp_path: Path):
    made = ablation.build_plan(file, tmp_path)
    assert set(made.ablation.all()) == {
        "base", "sft-only", "dpo-only", "round-1", "rounds-1-2", "rounds-1-2-3", "ultrafeedback-only", "snorkel-only",
        "pooled", "fixed-reference", "beta-0.01", "no-decontamination", "lora", "reversed"}  # fmt: skip
    assert len(made.shared) <= 0.4 * sum(len(made.stages_of(name)) for name in made.ablation.all())
    scores = {cell.variant: cell.plan.scores.key for cell in made.cells}
    assert len(set(scores.values())) == len(scores)


def test_the_on_policy_ablation_samples_once_and_ranks_once_by_each_judge(tmp_path: Path):
    made = ablation.build_plan(next(each for each in ABLATIONS if each.stem == "on-policy"), tmp_path)
    names = [stage.name.partition("@")[0] for stage in made.stages]
    seeds = len(made.ablation.seeds or ())
    assert names.count("sample.third") == names.count("rank.third.gold") == names.count("rank.third.longer") == seeds == 3
    assert names.count("rank.third.own") == 2 * seeds  # of all answers, and in the cascade of what gold leaves open
    scores = {(cell.variant, cell.seed): cell.plan.scores.key for cell in made.cells}
    assert len(set(scores.values())) == len(scores) == 9 * seeds


def test_the_pages_example_is_planned(plan: Planner):
    page = (REPOSITORY / "recipes" / "ablations" / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    given = yaml.safe_load(next(block for block in blocks if "variants:" in block))
    del given["base"]
    made = plan(given.pop("variants"), **given)
    assert "beta=0.01" in made.ablation.all() and len(made.cells) == 3 * len(made.ablation.all())


def test_a_report_is_read_back_from_the_store_as_it_was_planned(plan: Planner, tmp_path: Path):
    """So the last job on a cluster compares what was submitted, whatever has become of the files."""
    made = plan({"all": None, "short": {"rounds": [0]}, "beta": {"set": {"rounds.third.beta": 0.3}}}, "gate=null")
    folder = [store.prepare(tmp_path / "store", stage) for stage in made.stages][-1]
    (tmp_path / "made.yaml").unlink()
    report = store.planned(folder)
    assert report.key == made.stages[-1].key and [s.name for s in report.parents] == [s.name for s in made.shared]
    failed = {next(stage.key for stage in made.shared if stage.name == "dpo.third@beta"): "no space"}
    assert ablation.without(report, failed).key == made.without(failed).stages[-1].key != report.key


def rounds(*arguments: str | Path, store: Path, expect: int = 0) -> str:
    """Run the command line here; returns what it printed."""
    output = command_line.here(*arguments, expect=expect, environment={"ROUNDS_STORE": str(store), "COLUMNS": "200"})
    assert "Traceback" not in output
    return output


def test_an_ablation_runs_shares_survives_a_failing_variant_and_reports(tmp_path: Path):
    """Four variants of the small recipe for real; one is broken on purpose, mended, and only then computed."""
    store, rows = tmp_path / "store", tmp_path / "rows.jsonl"
    pair = {"prompt": "What is it?", "chosen": "It is this.", "rejected": "It is that."}
    rows.write_text(json.dumps({"prompt": "What is it?"}) + "\n")
    broken = {"extends": str(MINI), "variants": {"own-rows": {"set": {
        "sources.own": {"source": "file", "path": str(rows), "format": "preference", "licence": "ours", "phi": "off"},
        "rounds.second.data": ["own"]}}}}  # fmt: skip
    file = tmp_path / "ablation.yaml"
    file.write_text(yaml.safe_dump(broken))
    cluster = Path(__file__).parents[1] / "mini_cluster.yaml"

    output = rounds("ablate", file, "--cluster", cluster, store=store, expect=1)
    assert "own-rows is missing: source.own" in output and "rows do not fit" in output
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/done.json")}
    page = Path(next(line for line in output.splitlines() if line.startswith("page:")).split()[1])
    assert "own-rows</strong> is missing" in page.read_text()
    assert f"compared without own-rows: {page}" in rounds("report", file, store=store, expect=1)

    rows.write_text("".join(json.dumps({**pair, "prompt": f"What is {n}?"}) + "\n" for n in range(8)))
    output = rounds("ablate", file, "--cluster", cluster, store=store)
    assert "missing" not in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    page = Path(rounds("report", file, store=store).strip())
    text = page.read_text()
    assert "<script" not in text and "http" not in text.replace("http://www.w3.org", "").replace("http-equiv", "")
    lines = list(csv.DictReader(page.with_name("ablation.csv").open()))
    assert {line["variant"] for line in lines} == {"sft-only", "round-1", "beta", "own-rows"}
    records = {folder.parent.name: json.loads(folder.read_text())["seconds"] for folder in store.glob("*/done.json")}
    made = ablation.build_plan(file, store)
    alone = sum(records[stage.folder_name] for name in made.ablation.all() for stage in made.stages_of(name))
    assert f"{100 * sum(records[s.folder_name] for s in made.shared) / alone:.0f} %" in text
    assert "Measured: " in rounds("plan", file, store=store)
    assert "rounds ablate" in rounds("run", file, store=store, expect=1)
    assert "`rounds run" in rounds("ablate", MINI.with_name("mini.yaml"), store=store, expect=1)
