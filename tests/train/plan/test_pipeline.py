"""The shape of a run: which stages a recipe makes, what each is wired to, and what a change re-runs.

Covers: train/plan/checks, train/plan/eval_tasks, train/plan/rows.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe
from rounds.train.engine.graph import Asset, Stage
from rounds.train.plan.pipeline import Plan, build_plan

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"
KEYS = Path(__file__).parent / "quickstart_keys.txt"
REGENERATE = f"rounds plan recipes/quickstart.yaml --keys > {KEYS.relative_to(REPOSITORY)}"

Planner = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Planner:
    """Plan the quickstart with `--set` overrides."""

    def make(*overrides: str, file: Path = QUICKSTART) -> Plan:
        return build_plan(recipe.load(file, overrides), tmp_path / "store", file.parent)

    return make


@pytest.fixture
def plan_dict(tmp_path: Path) -> Callable[[dict], Plan]:
    """Plan a recipe given as data, written to a file of its own."""

    def make(data: dict) -> Plan:
        file = tmp_path / "made.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        return build_plan(recipe.load(file), tmp_path / "store", tmp_path)

    return make


def quickstart() -> dict:
    return yaml.safe_load(QUICKSTART.read_text())


def keys(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan.stages}


def changed(before: Plan, after: Plan) -> set[str]:
    old, new = keys(before), keys(after)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def followers(plan: Plan, name: str) -> set[str]:
    """A stage and everything that reads it, near or far."""
    found = {name}
    for stage in plan.stages:  # parents come first
        if any(parent.name in found for parent in stage.parents):
            found.add(stage.name)
    return found


def source(plan: Plan, stage: str, name: str) -> Stage:
    found = plan.stage(stage).inputs[name]
    assert isinstance(found, Stage)
    return found


def test_the_quickstart_is_these_stages_parents_first(plan: Planner):
    made = plan()
    functions = ("data", "tokenize", "reference", "dpo", "answers", "evaluate", "gate")
    per_round = [
        [f"source.pairs_{number}", *(f"{function}.{name}" for function in functions)]
        for number, name in enumerate(("first", "second", "third"), start=1)
    ]
    shared = [
        "source.facts",
        "source.facts_heldout",
        "source.pairs_heldout",
        "source.answers_heldout",
        "data.sft",
        "base",
    ]
    wanted = [
        *shared,
        "answers.base",
        "evaluate.base",
        "pack",
        "sft",
        "answers.sft",
        "evaluate.sft",
        *(name for names in per_round for name in names),
        "manifest",
        "export",
        "report",
    ]
    names = [stage.name for stage in made.stages]
    assert sorted(names) == sorted(wanted)
    assert len(names) == len(set(names))
    for place, stage in enumerate(made.stages):
        assert {parent.name for parent in stage.parents} <= set(names[:place]), stage.name
    assert [name for name in names if name.startswith(("sft", "dpo", "gate"))] == [
        "sft", "dpo.first", "gate.first", "dpo.second", "gate.second", "dpo.third", "gate.third",
    ]  # fmt: skip
    assert names[-2:] == ["export", "report"]


def test_the_quickstart_keys_are_the_golden_ones():
    command = [sys.executable, "-c", "from rounds.train.cli import main; main()", "plan", str(QUICKSTART), "--keys"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    assert printed.splitlines() == KEYS.read_text().splitlines(), (
        "the keys of the quickstart's stages are not those in the golden file: everything from the first changed stage on "
        f"is computed again in every store. If that is meant, run\n\n    {REGENERATE}\n\nand say why in the commit message."
    )


def test_planning_twice_gives_the_same_keys_in_the_same_order(plan: Planner):
    assert list(keys(plan()).items()) == list(keys(plan()).items())


def test_another_beta_reruns_its_round_from_dpo_on_and_nothing_before(plan: Planner):
    before = plan()
    assert changed(before, plan("rounds.second.beta=0.05")) == followers(before, "dpo.second")
    assert not any(name.endswith(".first") for name in followers(before, "dpo.second"))
    # The third round's data, and the tokens of both rounds' pairs, stand.
    kept = {"data.second", "tokenize.second", "reference.second", "source.pairs_3", "data.third", "tokenize.third"}
    assert kept.isdisjoint(followers(before, "dpo.second"))


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("rounds.second.learning_rate=1e-5", "dpo.second"),
        ("rounds.second.loss_type=[ipo]", "dpo.second"),
        ("rounds.second.max_length=128", "tokenize.second"),
        ("sft.learning_rate=1e-3", "sft"),
        ("sft.max_length=128", "pack"),
        ("gate.on_reject=stop", "gate.first"),
    ],
)
def test_a_knob_reruns_the_stage_that_reads_it_and_what_follows(plan: Planner, override: str, first: str):
    before = plan()
    assert changed(before, plan(override)) == followers(before, first)


def test_renaming_describing_and_tracking_rerun_only_the_card_and_the_report(plan: Planner):
    after = plan("name=other", "description=other", "wandb=off")
    assert changed(plan(), after) == {"manifest", "export", "report"}
    assert changed(plan(), plan("wandb=off")) == set()


def test_another_sft_source_refetches_no_other(plan: Planner):
    data = quickstart()
    before = plan()
    after = plan(
        "sources.questions.source=clinic_facts",
        "sources.questions.split=train_questions",
        f"sft.data={[*data['sft']['data'], 'questions']}",
    )
    assert {name for name in changed(before, after) if name.startswith("source.")} == {"source.questions"}
    assert "data.sft" in changed(before, after)
    assert {"data.first", "data.second", "data.third"}.isdisjoint(changed(before, after))


def test_an_unused_source_makes_no_stage(plan: Planner):
    after = plan("sources.spare.source=clinic_facts")
    assert changed(plan(), after) == {"report"}


def test_the_reference_previous_is_where_the_round_starts(plan: Planner):
    made = plan()
    assert source(made, "reference.first", "policy").name == "sft"
    assert source(made, "dpo.first", "policy").name == "sft"
    assert source(made, "reference.second", "policy").name == "gate.first"
    assert source(made, "dpo.second", "policy").name == "gate.first"
    assert source(made, "dpo.second", "reference").name == "reference.second"
    assert made.stage("dpo.second").params.stored()["reference_is_start"] is True


@pytest.mark.parametrize(("reference", "parent"), [("sft", "sft"), ("base", "base"), ("first", "gate.first")])
def test_a_named_reference_is_wired_to_that_policy(plan: Planner, reference: str, parent: str):
    made = plan(f"rounds.third.reference={reference}")
    assert source(made, "reference.third", "policy").name == parent
    assert source(made, "dpo.third", "policy").name == "gate.second"
    assert made.stage("dpo.third").params.stored()["reference_is_start"] is False


def test_naming_the_policy_that_the_round_starts_from_is_the_same_as_previous(plan: Planner):
    assert changed(plan(), plan("rounds.first.reference=sft", "rounds.second.reference=first")) == {"report"}


def test_the_gate_compares_the_new_policy_with_the_one_it_started_from(plan: Planner):
    inputs = {name: source(plan(), "gate.second", name).name for name in plan().stage("gate.second").inputs}
    assert inputs == {
        "current": "gate.first",
        "candidate": "dpo.second",
        "current_scores": "gate.first",
        "candidate_scores": "evaluate.second",
    }


def test_without_a_gate_the_new_policy_goes_on(plan: Planner):
    made = plan("gate=null")
    assert not [stage.name for stage in made.stages if stage.kind.name == "gate"]
    assert source(made, "dpo.second", "policy").name == "dpo.first"
    assert source(made, "reference.second", "policy").name == "dpo.first"
    assert source(made, "export", "policy").name == "dpo.third"


def test_a_gate_may_stand_on_one_round_only(plan: Planner):
    made = plan("gate=null", "rounds.second.gate={rules: [{metric: facts/acc, may_fall_by: 2}]}")
    assert [stage.name for stage in made.stages if stage.kind.name == "gate"] == ["gate.second"]
    assert source(made, "gate.second", "current_scores").name == "evaluate.first"
    assert source(made, "dpo.third", "policy").name == "gate.second"


def test_without_evaluation_nothing_is_evaluated(plan: Planner):
    made = plan("gate=null", "evaluate=null")
    assert not [stage.name for stage in made.stages if stage.kind.name == "evaluate"]
    assert source(made, "export", "policy").name == "dpo.third"


def test_without_rounds_the_sft_policy_is_exported(plan: Planner):
    made = plan("rounds=[]")
    assert source(made, "export", "policy").name == "sft"


def test_the_gate_and_what_ends_a_run_also_run_after_a_stop(plan: Planner):
    # A gate behind a stop passes the current policy on; without it nothing could be exported.
    after_stop = {stage.name for stage in plan().stages if stage.kind.after_stop}
    assert after_stop == {"gate.first", "gate.second", "gate.third", "manifest", "export", "report"}


@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("sft.data=[fact]", ["sft.data", "'fact'", "did you mean 'facts'?"]),
        ("sources.facts.source=clinic_fact", ["sources.facts", "'clinic_fact'", "did you mean 'clinic_facts'?"]),
        ("sources.facts.split=trian", ["sources.facts", "'trian'", "did you mean 'train'?"]),
        ("filters=[exact_dedupe]", ["'exact_dedupe'", "did you mean 'exact_dedup'?"]),
        ("filters=[{name: decontaminate, ngramm: 9}]", ["decontaminate", "ngramm"]),
        ("rounds.second.reference=frist", ["rounds.second.reference", "'frist'", "did you mean 'first'?"]),
        ("rounds.second.reference=third", ["rounds.second.reference", "no policy before this round"]),
        ("rounds.second.reference=second", ["rounds.second.reference", "no policy before this round"]),
        ("evaluate.tasks.0.task=choice_likelyhood", ["facts", "did you mean 'choice_likelihood'?"]),
        ("evaluate.tasks.facts.source=null", ["evaluate.tasks.facts.source", "required"]),
        ("evaluate.tasks.facts.source=fact_heldout", ["'fact_heldout'", "did you mean 'facts_heldout'?"]),
        ("evaluate.preferences=pairs_helout", ["evaluate", "did you mean 'pairs_heldout'?"]),
        ("evaluate.preferences=facts_heldout", ["evaluate.preferences", "holds questions, expected pairs"]),
        ("evaluate.conversations=pairs_heldout", ["evaluate.conversations", "holds pairs, expected conversations"]),
        ("gate.rules.0.metric=fact/acc", ["'first'", "'fact/acc'", "did you mean 'facts/acc'?"]),
        ("gate.rules.0.metric=facts", ["'facts'", "expected task/metric"]),
        ("rounds.first.data=[pairs_heldout]", ["'pairs_heldout'"]),
        ("sft.data=[facts, facts_heldout]", ["sft.data", "'heldout_questions'", "evaluation only"]),
        ("evaluate.preferences=pairs_2", ["evaluate.preferences", "'pairs_2'", "also trained on"]),
        ("evaluate.conversations=facts", ["evaluate.conversations", "'facts'", "also trained on"]),
        ("sft=null", ["tiny", "sft section"]),
        ("base={kind: local, path: /no/such/model}", ["base.path", "/no/such/model", "no such file"]),
        ("base.chat_template=none.jinja", ["base.chat_template", "none.jinja"]),
        ("sources.facts={source: file, path: /no/such.jsonl, format: messages}", ["sources.facts.path", "no such file"]),
        ("sources.facts={source: file, format: messages}", ["sources.facts", "path"]),
        ("sources.facts={source: file, path: /tmp}", ["sources.facts", "format"]),
    ],
)  # fmt: skip
def test_a_name_that_refers_to_nothing_is_one_message(plan: Planner, override: str, needles: list[str]):
    with pytest.raises(UserError) as error:
        plan(override)
    message = str(error.value)
    assert all(needle in message for needle in needles), message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("metric", ["facts/accuracy", "preferences/acuracy", "conversations/accuracy", "answers/length"])
def test_a_metric_that_the_task_does_not_have_is_refused_while_planning(plan: Planner, metric: str):
    """A gate that can never be judged must fail before hours of training, not after."""
    with pytest.raises(UserError, match=metric):
        plan(f"gate.rules=[{{metric: {metric}, may_fall_by: 2}}]")


@pytest.mark.parametrize("metric", ["facts/acc", "facts/acc/drug_class", "facts_written/exact_match",
                                    "preferences/accuracy", "preferences/accuracy/unsafe", "preferences/margin",
                                    "conversations/loss", "answers/tokens", "answers/ended"])  # fmt: skip
def test_every_metric_that_is_measured_may_be_ruled_on(plan: Planner, metric: str):
    plan(f"gate.rules=[{{metric: {metric}, may_fall_by: 2}}]")


def test_training_on_an_evaluation_only_split_is_refused(plan: Planner):
    with pytest.raises(UserError, match=r"first\.data.*'heldout_pairs'.*evaluation only"):
        plan("rounds.first.data=[pairs_heldout]", "evaluate=null", "gate=null")


def test_pairs_are_refused_as_sft_data_while_planning(plan: Planner):
    with pytest.raises(UserError, match="pairs_1"):
        plan("sft.data=[facts, pairs_1]")


def test_conversations_are_refused_as_pairs_while_planning(plan: Planner):
    with pytest.raises(UserError, match=r"facts"):
        plan("rounds.first.data=[facts]")


def test_a_source_twice_in_a_mix_is_refused_while_planning(plan: Planner):
    with pytest.raises(UserError, match="facts"):
        plan("sft.data=[facts, {name: facts, max_rows: 3}]")


def test_the_same_rows_under_two_names_are_also_trained_on(plan: Planner):
    """Another name for the trained split must not let it be evaluated on."""
    with pytest.raises(UserError, match="trained on"):
        plan("sources.again={source: clinic_facts, split: train}", "evaluate.conversations=again")


@pytest.mark.parametrize("where", ["sft", "rounds.second"])
def test_rows_longer_than_the_model_reads_are_refused_while_planning(plan: Planner, where: str):
    with pytest.raises(UserError, match=rf"^{where}\.max_length: 9999 tokens.*max_position_embeddings 512"):
        plan(f"{where}.max_length=9999")


def test_an_unknown_loss_type_is_refused_while_planning(plan: Planner):
    with pytest.raises(UserError, match="sigmoid"):
        plan("rounds.first.loss_type=[sigmoud]")


# Local files and folders.


@pytest.fixture
def own_rows(tmp_path: Path) -> Callable[[str, str], dict]:
    """A recipe on a local file of rows at `folder/rows.jsonl` and a local model at `folder/model`."""

    def make(folder: str, answer: str = "Yes.", weights: bytes = b"weights") -> dict:
        place = tmp_path / folder
        (place / "model").mkdir(parents=True)
        (place / "model" / "model.safetensors").write_bytes(weights)
        (place / "model" / "config.json").write_text("{}")
        (place / "rows.jsonl").write_text(json.dumps({"question": "Is it?", "answer": answer}) + "\n")
        return {
            "name": "own",
            "base": {"kind": "local", "path": str(place / "model")},
            "sources": {
                "rows": {
                    "source": "file",
                    "path": str(place / "rows.jsonl"),
                    "format": "question_answer",
                    "licence": "ours",
                    "phi": "off",
                }
            },
            "filters": [],
            "sft": {"data": ["rows"], "max_length": 64, "global_batch_size": 2, "learning_rate": 1e-3},
        }

    return make


def test_the_same_files_elsewhere_give_the_same_keys(plan_dict: Callable[[dict], Plan], own_rows: Callable[..., dict]):
    assert keys(plan_dict(own_rows("one"))) == keys(plan_dict(own_rows("two")))


def test_changed_rows_change_what_reads_them(plan_dict: Callable[[dict], Plan], own_rows: Callable[..., dict]):
    before, after = plan_dict(own_rows("one")), plan_dict(own_rows("two", answer="No."))
    assert changed(before, after) == followers(before, "source.rows")


def test_changed_weights_change_what_reads_them(plan_dict: Callable[[dict], Plan], own_rows: Callable[..., dict]):
    before, after = plan_dict(own_rows("one")), plan_dict(own_rows("two", weights=b"WEIGHTS"))
    assert changed(before, after) == followers(before, "base")
    assert isinstance(after.stage("base").inputs["model"], Asset)


def test_no_local_path_is_in_any_params(plan_dict: Callable[[dict], Plan], own_rows: Callable[..., dict], tmp_path: Path):
    for stage in plan_dict(own_rows("one")).stages:
        assert str(tmp_path) not in json.dumps(stage.params.stored()), stage.name


def test_a_path_is_relative_to_the_recipe(plan_dict: Callable[[dict], Plan], own_rows: Callable[..., dict]):
    absolute = own_rows("one")
    relative = {**absolute, "base": {"kind": "local", "path": "one/model"}}
    assert keys(plan_dict(absolute)) == keys(plan_dict(relative))


# Every recipe of the project, with nothing heavy importable.

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "trl", "peft", "deepspeed"}:
            raise ImportError(f"{name} is imported while planning")

sys.meta_path.insert(0, Blocker())
"""
PLAN_BLOCKED = (
    BLOCKED
    + """
from pathlib import Path
from rounds.train.config import recipe
from rounds.train.plan.pipeline import build_plan
file, store = Path(sys.argv[1]), Path(sys.argv[2])
for stage in build_plan(recipe.load(file, tuple(sys.argv[3:])), store, file.parent).stages:
    print(stage.name, stage.key)
assert "lm_eval" not in sys.modules  # its folder is looked for, so the blocker cannot have it
"""
)


def local_stand_ins(data: object, folder: Path, path: str = "") -> list[str]:
    """Overrides that put empty files where a recipe points to a person's own data or model."""
    if isinstance(data, list):
        found = [local_stand_ins(value, folder, f"{path}.{place}") for place, value in enumerate(data)]
        return [override for overrides in found for override in overrides]
    if not isinstance(data, dict):
        return []
    found = []
    for key, value in data.items():
        here = f"{path}.{key}".lstrip(".")
        if key == "path" and isinstance(value, str):
            stand_in = folder / here
            stand_in.write_text("{}\n")
            found.append(f"{here}={stand_in}")
        else:
            found += local_stand_ins(value, folder, here)
    return found


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_is_planned_without_torch(file: Path, tmp_path: Path):
    overrides = local_stand_ins(yaml.safe_load(file.read_text()), tmp_path)
    command = [sys.executable, "-c", PLAN_BLOCKED, str(file), str(tmp_path / "store"), *overrides]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1].startswith("report ")


def test_the_blocker_blocks(tmp_path: Path):
    command = [sys.executable, "-c", BLOCKED + "import torch"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert "torch is imported while planning" in result.stderr


def test_a_part_of_a_plan_is_what_its_stages_need_in_the_plan_s_order(plan: Planner):
    whole = plan()
    part = whole.until(["tokenize.first", "data.sft"])
    wanted = ["source.facts", "source.facts_heldout", "source.pairs_heldout", "source.answers_heldout", "data.sft", "base"]
    assert [stage.name for stage in part.stages] == [*wanted, "source.pairs_1", "data.first", "tokenize.first"]
    assert keys(part).items() <= keys(whole).items()
    assert whole.until([stage.name for stage in whole.stages]) == whole
    with pytest.raises(UserError, match="no stage 'sftt': did you mean 'sft'"):
        whole.until(["sftt"])
