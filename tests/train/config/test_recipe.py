"""Reading a recipe: every mistake is one message that says where it is, what was found, and the nearest valid name."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe
from rounds.train.config.recipe import Recipe
from rounds.train.plan.pipeline import build_plan

VALID = """\
name: small
base:
  kind: tiny
  hidden_size: 32
  num_attention_heads: 2
sources:
  facts: {source: clinic_facts}
  pairs: {source: clinic_facts, split: train_pairs_1}
  asked: {source: clinic_facts, split: heldout_questions}
sft:
  data: [facts]
  max_length: 64
  global_batch_size: 2
  learning_rate: 1.0e-3
rounds:
  - name: first
    data: [pairs]
    max_length: 64
    global_batch_size: 2
    learning_rate: 1.0e-5
  - name: second
    data:
      - {name: pairs, max_rows: 4}
    max_length: 64
    global_batch_size: 2
    learning_rate: 1.0e-5
    beta: 0.2
    reference: first
evaluate:
  tasks:
    - {task: choice_likelihood, name: asked, source: asked}
gate:
  rules:
    - {metric: asked/acc, may_fall_by: 2}
wandb: off
"""
SOURCES = VALID[VALID.index("sources:") : VALID.index("sft:")]
SHA = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, text: str = VALID) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        recipe.load(path, overrides)
    return str(error.value)


def test_the_valid_recipe_is_read(tmp_path: Path):
    read = recipe.load(write(tmp_path))
    assert [item.name for item in read.rounds] == ["first", "second"]
    assert read.rounds[0].data[0].name == "pairs"
    assert read.rounds[1].data[0].max_rows == 4
    assert (read.rounds[0].beta, read.rounds[1].beta) == (0.1, 0.2)
    assert read.sft and read.sft.weight_decay == 0.01
    with pytest.raises(ValueError, match="frozen"):
        read.name = "other"  # type: ignore[misc]


# old text, new text, text whose line the message must name (None: the file alone), what else it must say
MISTAKES: dict[str, tuple[str, str, str | None, list[str]]] = {
    "unknown field at the top": ("wandb: off", "evalute: {}", "evalute", ["evalute", "did you mean 'evaluate'?"]),
    "unknown field in a round": ("beta: 0.2", "betta: 0.2", "betta", ["rounds.1.betta", "did you mean 'beta'?"]),
    "unknown field in the base": ("hidden_size", "hiden_size", "hiden_size", ["hiden_size", "did you mean 'hidden_size'?"]),
    "unknown field in sft": ("  learning_rate: 1.0e-3", "  learning_rate: 1.0e-3\n  optm: sgd", "optm", ["'optim'?"]),
    "unknown field in a source": ("{source: clinic_facts}", "{source: clinic_facts, slpit: a}", "facts:",
                                  ["sources.facts.slpit", "did you mean 'split'?"]),
    "unknown field in a mix": ("max_rows: 4", "max_row: 4", "max_row", ["max_row", "did you mean 'max_rows'?"]),
    "unknown field in a task": ("name: asked, source", "nam: asked, source", "nam: asked", ["nam", "did you mean 'name'?"]),
    "unknown field in a rule": ("may_fall_by", "may_fal_by", "may_fal_by", ["may_fal_by", "did you mean 'may_fall_by'?"]),
    "wrong type": ("beta: 0.2", "beta: strong", "beta: strong", ["rounds.1.beta", "number", "'strong'"]),
    "list for a section": ("gate:\n  rules:\n    - {metric: asked/acc, may_fall_by: 2}", "gate: [2]", "gate:", ["gate", "[2]"]),
    "text for a list": ("data: [pairs]", "data: pairs", "data: pairs", ["rounds.0.data", "'pairs'"]),
    "empty list": ("data: [facts]", "data: []", "data: []", ["sft.data", "at least 1"]),
    "no sources": (SOURCES, "sources: {}\n", "sources: {}", ["sources", "at least 1"]),
    "out of range": ("beta: 0.2", "beta: -1", "beta: -1", ["rounds.1.beta", "greater than 0", "-1"]),
    "missing at the top": ("name: small\n", "", None, ["name", "missing"]),
    "missing in sft": ("  max_length: 64\n  global", "  global", "sft:", ["sft.max_length", "missing"]),
    "missing in a round": ("  - name: second\n    data:", "  - data:", "- data:", ["rounds.1.name", "missing"]),
    "missing kind": ("  kind: tiny\n", "", "base:", ["base", "kind"]),
    "unknown kind": ("kind: tiny", "kind: tinny", "base:", ["base", "'tinny'", "did you mean 'tiny'?"]),
    "unknown choice": ("beta: 0.2", "optim: rmspropp", "optim", ["optim", "'rmspropp'", "did you mean 'rmsprop'?"]),
    "bad name": ("name: second", "name: se/cond", "name: se/cond", ["rounds.1.name", "'se/cond'"]),
    "two rounds of one name": ("name: second", "name: first", "name: first", ["two rounds", "'first'"]),
    "round named sft": ("name: second", "name: sft", "name: sft", ["'sft'", "reference"]),
    "rule with two conditions": ("may_fall_by: 2", "may_fall_by: 2, at_least: 0.5", "may_fall_by",
                                 ["exactly one of", "may_fall_by", "at_least"]),
    "rule with none": (", may_fall_by: 2", "", "metric:", ["exactly one of", "may_fall_by", "none"]),
    "loss weights": ("beta: 0.2", "loss_weights: [1, 2]", "name: second", ["loss_weights has 2", "1 loss types"]),
    "short revision": ("  kind: tiny\n  hidden_size: 32\n  num_attention_heads: 2", "  kind: hub\n  id: a/b\n  revision: main",
                       "revision: main", ["revision", "'main'"]),
    "capital revision": ("  kind: tiny\n  hidden_size: 32\n  num_attention_heads: 2", f"  kind: hub\n  id: a/b\n  revision: {SHA.upper()}",
                         "revision:", ["revision", SHA.upper()]),
    "wandb on a number": ("wandb: off", "wandb: 3", "wandb: 3", ["wandb", "3"]),
    "unknown field in wandb": ("wandb: off", "wandb: {projct: x}", "projct", ["projct", "did you mean 'project'?"]),
    "two tasks of one name": ("    - {task: choice_likelihood, name: asked, source: asked}",
                              "    - {task: a, name: asked}\n    - {task: b, name: asked}", "evaluate:", ["'asked'", "name"]),
    "null where a number is due": ("beta: 0.2", "beta: null", "beta: null", ["rounds.1.beta", "None"]),
    "infinite number": ("learning_rate: 1.0e-3", "learning_rate: .inf", ".inf", ["learning_rate", "inf"]),
    "NaN": ("learning_rate: 1.0e-3", "learning_rate: .nan", ".nan", ["learning_rate", "nan"]),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "needles"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_message_with_file_line_field_and_nearest_name(
    tmp_path: Path, old: str, new: str, place: str | None, needles: list[str]
):
    assert VALID.count(old) == 1, f"the case itself is wrong: {old!r} is {VALID.count(old)} times in the recipe"
    text = VALID.replace(old, new)
    path = write(tmp_path, text)
    message = message_of(path)
    if place:
        lines = [number for number, line in enumerate(text.splitlines(), 1) if place in line]
        assert message.startswith(tuple(f"{path}:{number}: " for number in lines)), message
    else:
        assert message.startswith(f"{path}: "), message
    assert all(needle in message for needle in needles), message
    assert len(message.splitlines()) == 1, message


def test_a_misspelt_required_field_is_told_with_its_right_name(tmp_path: Path):
    message = message_of(write(tmp_path, VALID.replace("  learning_rate: 1.0e-3", "  learnin_rate: 1.0e-3")))
    assert "sft.learnin_rate: unknown field. did you mean 'learning_rate'?" in message


def test_two_mistakes_are_two_lines(tmp_path: Path):
    message = message_of(write(tmp_path, VALID.replace("beta: 0.2", "betta: 0.2").replace("name: small", "nam: small")))
    assert "rounds.1.betta: unknown field" in message and " nam: unknown field" in message
    assert all(line.startswith(str(tmp_path)) for line in message.splitlines())


@pytest.mark.parametrize("top", ["- name: small\n", "just a text\n", "", "3\n", "null\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, top: str):
    path = write(tmp_path, top)
    message = message_of(path)
    assert message.startswith(f"{path}: ") and "mapping" in message


@pytest.mark.parametrize(
    "text",
    [
        "name: [small\n",
        "name: small\n\tbase: 3\n",
        "name: 'small\n",
        "a: b: c\n",
        "name: *anchor\n",
        "? [a, {b: c}]\n: d\n",
    ],
)
def test_bad_yaml_says_where(tmp_path: Path, text: str):
    path = write(tmp_path, text)
    message = message_of(path)
    assert message.startswith(f"{path}: not valid YAML") and "line" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["name: &a [*a]\n", "name: x\nsources: &a {b: *a}\n", "name: !!python/object:os.system x\n", "1: 2\n", "null: 2\n",
     "true: {1: 2}\n", "name: 2020-01-01\n", "name: !!binary aGk=\n", "base: !!set {a, b}\n", "base: {kind: [a]}\n",
     "base: {kind: null}\n", "rounds: {name: a}\n", "name: \"a\\0b\"\n"],
)  # fmt: skip
def test_odd_yaml_is_a_message_too(tmp_path: Path, text: str):
    assert str(tmp_path) in message_of(write(tmp_path, text))


def test_a_field_given_twice_is_refused(tmp_path: Path):
    """PyYAML keeps the last and says nothing: half of what the person wrote would not happen."""
    path = write(tmp_path, VALID + "sft: {data: [facts], max_length: 9, global_batch_size: 1, learning_rate: 1.0e-3}\n")
    message = message_of(path)
    assert "sft" in message and "twice" in message
    assert f"line {len(path.read_text().splitlines())}, column 1" in message


def test_merge_keys_still_work(tmp_path: Path):
    text = VALID.replace("- name: first", "- &round\n    name: first") + ""
    start = text.index("  - name: second")
    text = text[:start] + "  - {<<: *round, name: second, beta: 0.2}\n" + text[text.index("evaluate:") :]
    read = recipe.load(write(tmp_path, text))
    assert (read.rounds[1].name, read.rounds[1].beta, read.rounds[1].max_length) == ("second", 0.2, 64)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path):
    path = tmp_path / "small.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    assert message_of(path).startswith(f"{path}: not valid YAML")


def test_a_missing_file_names_a_near_one(tmp_path: Path):
    write(tmp_path)
    message = message_of(tmp_path / "smal.yaml")
    assert "no such file" in message and f"did you mean {tmp_path / 'small.yaml'}?" in message


@pytest.mark.parametrize("name", ["none/at/all.yaml", "."])
def test_a_missing_folder_or_a_folder_is_refused(tmp_path: Path, name: str):
    assert "no such file" in message_of(tmp_path / name)


# wandb


@pytest.mark.parametrize("value", ["off", "false", "null", "'off'", "no"])
def test_wandb_can_be_switched_off(tmp_path: Path, value: str):
    assert recipe.load(write(tmp_path, VALID.replace("wandb: off", f"wandb: {value}"))).wandb is None


@pytest.mark.parametrize(
    ("text", "project", "mode"),
    [
        ("wandb: on", "rounds", "offline"),
        ("wandb: {project: mine}", "mine", "offline"),
        ("wandb: {mode: online}", "rounds", "online"),
    ],
)
def test_wandb_records_what_the_recipe_says_and_goes_online_only_where_it_says_so(tmp_path: Path, text: str, project: str, mode: str):
    read = recipe.load(write(tmp_path, VALID.replace("wandb: off", text)))
    assert read.wandb and (read.wandb.project, read.wandb.mode) == (project, mode)


def test_without_a_line_on_wandb_nothing_is_recorded(tmp_path: Path):
    assert recipe.load(write(tmp_path, VALID.replace("wandb: off", ""))).wandb is None


# --set


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("sft.max_length=32", lambda read: read.sft.max_length == 32),
        ("rounds.second.beta=0.7", lambda read: read.rounds[1].beta == 0.7),
        ("rounds.1.beta=0.7", lambda read: read.rounds[1].beta == 0.7),
        ("rounds.second.data.pairs.max_rows=9", lambda read: read.rounds[1].data[0].max_rows == 9),
        ("rounds.first.data.0=asked", lambda read: read.rounds[0].data[0].name == "asked"),
        ("rounds.first.data.pairs=asked", lambda read: read.rounds[0].data[0].name == "asked"),
        ("evaluate.tasks.asked.limit=3", lambda read: read.evaluate.tasks[0].limit == 3),
        ("export.licence=mit", lambda read: read.export.licence == "mit"),
        ("sft.lora.r=4", lambda read: read.sft.lora.r == 4),
        ("sources.more.source=file", lambda read: read.sources["more"].source == "file"),
        ("rounds=[]", lambda read: read.rounds == ()),
        ("wandb.project=mine", lambda read: read.wandb.project == "mine"),
        ("description=a=b", lambda read: read.description == "a=b"),
        ("rounds.first.loss_type=ipo", lambda read: read.rounds[0].loss_type == ("ipo",)),
        ("sft.learning_rate=2e-3", lambda read: read.sft.learning_rate == 2e-3),
    ],
)
def test_set_changes_one_field(tmp_path: Path, override: str, field: Any):
    assert field(recipe.load(write(tmp_path), (override,)))


def test_the_last_set_wins(tmp_path: Path):
    read = recipe.load(write(tmp_path), ("sft.max_length=32", "sft.max_length=48"))
    assert read.sft and read.sft.max_length == 48


def test_set_on_an_aliased_round_changes_that_round_only(tmp_path: Path):
    """`<<: *round` copies the fields but shares the lists and sections in them."""
    text = VALID.replace("    data: [pairs]", "    lora: {r: 4}\n    data: [pairs]").replace("- name: first", "- &round\n    name: first")
    start = text.index("  - name: second")
    text = text[:start] + "  - {<<: *round, name: second}\n" + text[text.index("evaluate:") :]
    read = recipe.load(write(tmp_path, text), ("rounds.second.lora.r=8", "rounds.second.data.0=asked"))
    assert [item.lora.r if item.lora else 0 for item in read.rounds] == [4, 8]
    assert [item.data[0].name for item in read.rounds] == ["pairs", "asked"]


@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("sft.max_length", ["--set sft.max_length", "path.to.field=value"]),
        ("sft.max_length=[1", ["--set sft.max_length=[1", "not valid YAML"]),
        ("rounds.secnd.beta=1", ["--set rounds.secnd.beta=1", "'secnd'", "did you mean 'second'?"]),
        ("rounds.7.beta=1", ["--set rounds.7.beta=1", "'7'", "second"]),
        ("rounds.7=x", ["--set rounds.7=x", "'7'"]),
        ("rounds.-1.beta=1", ["--set rounds.-1.beta=1", "'-1'"]),
        ("rounds.second.bta=1", ["bta", "did you mean 'beta'?"]),
        ("sft.max_length=long", ["sft.max_length", "'long'"]),
        ("nam=x", ["nam", "did you mean 'name'?"]),
        ("name.first=x", ["name"]),
        ("=x", ["unknown field"]),
        ("sft.=x", ["unknown field"]),
        ("sft..max_length=3", ["unknown field"]),
        ("rounds.second.data.zz=x", ["'zz'", "pairs"]),
        ("sft.data.0.max_rows=3", ["sft.data.0"]),
        ("rounds.first.loss_type=sigmod", ["'sigmod'", "did you mean 'sigmoid'?"]),
        ("rounds.first.loss_type=3", ["should be a list"]),
        ("rounds.first.loss_type=[aot]", ["per_device_train_batch_size", "aot looks at the pairs of a micro-batch"]),
        ("rounds.first.loss_type=[sigmoid, sft]", ["per_device_train_batch_size", "sft looks at"]),
        ("rounds.first.per_device_train_batch_size=2", ["only for aot, aot_unpaired, sft"]),
        ("sft.per_device_train_batch_size=2", ["whatever the micro-batch"]),
        ("rounds.first.loss_type=[exo_pair]", ["takes the logarithm of label_smoothing"]),
        (
            "rounds.first={name: first, data: [pairs], max_length: 64, global_batch_size: 2, learning_rate: 1, loss_type: [aot], "
            "per_device_train_batch_size: 2, use_weighting: true}",
            ["use_weighting", "aot takes pairs apart"],
        ),
        (
            "rounds.first={name: first, data: [pairs], max_length: 64, global_batch_size: 2, learning_rate: 1, loss_type: [nca_pair], "
            "f_divergence_type: js_divergence}",
            ["js_divergence is not defined for nca_pair"],
        ),
        (
            "rounds.first={name: first, data: [pairs], max_length: 64, global_batch_size: 2, learning_rate: 1, loss_type: [aot], "
            "per_device_train_batch_size: 4}",
            ["4 does not divide global_batch_size 2"],
        ),
        ("sft.lora={target_modules: [q_proj, lm_head]}", ["names lm_head"]),
        ("sft.lora={target_modules: '.*'}", ["names lm_head"]),
        ("sft.lora={target_modules: '(q'}", ["no regular expression"]),
        (
            "sources.pair.path=x",
            ["--set sources.pair.path=x: sources has no 'pair', and a new one needs 'source'", "did you mean 'pairs'?"],
        ),
    ],
)
def test_a_wrong_set_is_one_message(tmp_path: Path, override: str, needles: list[str]):
    message = message_of(write(tmp_path), override)
    assert all(needle in message for needle in needles), message
    assert len(message.splitlines()) == 1, message


def test_a_mistake_in_a_set_is_not_blamed_on_a_line_of_the_file(tmp_path: Path):
    """The file is right; the person must look at the command."""
    message = message_of(write(tmp_path), "rounds.second.beta=strong")
    assert "--set" in message, message


def test_paths_in_the_file_and_in_set_are_relative_to_where_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = VALID.replace("{source: clinic_facts}", "{source: file, format: messages, path: rows.jsonl}")
    read = recipe.load(write(tmp_path, text))
    assert read.sources["facts"].path == str(tmp_path / "rows.jsonl")
    read = recipe.load(write(tmp_path, text), ("sources.facts.path=rows.jsonl",))
    assert read.sources["facts"].path == str(tmp_path / "here" / "rows.jsonl")


def test_a_path_inside_a_set_section_is_absolute_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    read = recipe.load(write(tmp_path), ("base={kind: local, path: model}",))
    assert read.base.kind == "local" and read.base.path == str(tmp_path / "here" / "model")


def test_a_source_may_be_called_path(tmp_path: Path):
    text = VALID.replace("facts: {source: clinic_facts}", "path: {source: file, format: messages, path: a.jsonl}")
    read = recipe.load(write(tmp_path, text.replace("[facts]", "[path]")))
    assert read.sources["path"].path == str(tmp_path / "a.jsonl")


# Any mistake at all.

ODD = [None, True, 0, -1, 10**30, 1.5, float("inf"), float("nan"), "", " ", "x" * 300, "/abs", "**", "a**", "a/b", "..", "*", "[",
       "~nobody-here/x", "a\0b", "off", "é\u2028", "first", "facts", "pairs", [], {}, [None], {"": ""}, {"a": {"b": [1]}},
       [["name"]], {1: 2}, {None: None}, "2020-01-01", "none.jinja"]  # fmt: skip
FIELDS = [
    "name",
    "kind",
    "path",
    "data",
    "beta",
    "loss_type",
    "lora",
    "gate",
    "filters",
    "task",
    "metric",
    "revision",
    "lr",
]


def places(node: Any, path: tuple = ()) -> list[tuple]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path] * bool(path) + [place for key, child in children for place in places(child, (*path, key))]


def mutate(data: Any, draw: Any) -> None:
    spots = places(data)
    if not spots:
        return
    *parents, last = draw(st.sampled_from(spots))
    node = data
    for part in parents:
        node = node[part]
    action = draw(st.sampled_from(["value", "remove", "rename", "add", "copy"]))
    if action == "value":
        node[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif action == "remove":
        del node[last]
    elif action == "copy":
        other = data
        for part in draw(st.sampled_from(spots)):
            other = other[part]
        node[last] = copy.deepcopy(other)
    elif isinstance(node, dict):
        node[draw(st.sampled_from(FIELDS) | st.text(max_size=3))] = (
            node.pop(last) if action == "rename" else copy.deepcopy(draw(st.sampled_from(ODD)))
        )
    else:
        node.append(copy.deepcopy(draw(st.sampled_from(ODD))))


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_wrong_only_a_user_error_comes_out(tmp_path: Path, data: st.DataObject):
    mutated = yaml.safe_load(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(mutated, data.draw)
    path = write(tmp_path, yaml.safe_dump(mutated, sort_keys=False, allow_unicode=True))
    try:
        read = recipe.load(path)
        assert isinstance(read, Recipe)
        plan = build_plan(read, tmp_path / "store", tmp_path)
        assert plan.stages[-1].key
    except UserError as error:
        assert str(error).strip()


@pytest.mark.parametrize("field", ["rounds.second.beta", "base.chat_template", "sources.facts.path", "evaluate.tasks.asked.task",
                                   "sources.facts.source", "filters", "name", "sources.facts", "sft.data", "gate.rules.0.metric",
                                   "evaluate.tasks", "base", "rounds.second.loss_weights", "sft.lora", "export", "wandb",
                                   "rounds.second.reference", "evaluate.preferences", "sources.facts.split"])  # fmt: skip
def test_an_odd_value_in_any_field_is_a_user_error_or_fine(tmp_path: Path, field: str):
    path, escaped = write(tmp_path), {}
    for value in ODD:
        written = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
        try:
            build_plan(recipe.load(path, (f"{field}={written}",)), tmp_path / "store", tmp_path)
        except UserError as error:
            assert str(error).strip()
        except Exception as error:
            escaped[repr(value)[:20]] = f"{type(error).__name__}: {str(error)[:80]}"
    assert not escaped


@pytest.mark.parametrize("task", ["/abs", "**", "a**", "*", "arc_*", "..", "", "utils", "a\nb", "(", "README"])
def test_a_task_that_lm_eval_does_not_ship_is_refused(tmp_path: Path, task: str):
    quoted = yaml.safe_dump(task, default_style='"', width=10**6).strip()
    read = recipe.load(write(tmp_path), (f"evaluate={{tasks: [{{task: {quoted}, name: asked}}]}}",))
    with pytest.raises(UserError, match="no such task"):
        build_plan(read, tmp_path / "store", tmp_path)


@pytest.mark.parametrize("task", ["arc_easy", "mmlu", "medqa_4options", "mmlu_anatomy"])
def test_tasks_and_groups_that_lm_eval_ships_are_found(tmp_path: Path, task: str):
    read = recipe.load(write(tmp_path), (f"evaluate={{tasks: [{{task: {task}, name: asked}}]}}",))
    assert build_plan(read, tmp_path / "store", tmp_path).stage("evaluate.base").params.stored()["tasks"][0]["task"] == task
