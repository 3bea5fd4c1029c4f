"""`extends`: a recipe states its differences from another, and every mistake still names its own file and line.

Covers: train/config/own_file.
"""

import os
import re
import time
from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.config import cluster, recipe, shipped, yaml_file
from rounds.train.plan import pipeline
from tests.train.config.test_recipe import VALID


def write(folder: Path, **files: str) -> Path:
    """Write `base.yaml`, the valid recipe, and the given files; return the last."""
    folder.mkdir(exist_ok=True)
    path = folder / "base.yaml"
    path.write_text(VALID)
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text)
    return path


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        recipe.load(path, overrides)
    return str(error.value)


def line(path: Path, text: str) -> str:
    number = next(n for n, each in enumerate(path.read_text().splitlines(), start=1) if text in each)
    return f"{path}:{number}: "


def test_maps_merge_and_lists_and_scalars_replace(tmp_path: Path):
    made = recipe.load(
        write(tmp_path, top="extends: base.yaml\nname: top\nsft: {learning_rate: 0.5, data: [facts]}\nevaluate: {tasks: []}\ngate: null\n")
    )
    assert (made.name, made.base.kind, made.sft and made.sft.max_length) == ("top", "tiny", 64)
    assert made.sft and made.sft.learning_rate == 0.5
    assert made.evaluate and made.evaluate.tasks == () and made.gate is None
    assert [each.name for each in made.rounds] == ["first", "second"]


def test_a_map_over_a_list_enters_it_by_name_or_position(tmp_path: Path):
    file = write(tmp_path, top="extends: base.yaml\nrounds: {second: {beta: 0.5}, 0: {data: {0: {name: pairs}}}}\n")
    made = recipe.load(file, ("rounds.first.beta=0.3",))
    assert [each.beta for each in made.rounds] == [0.3, 0.5]
    assert made.rounds[1].data[0].max_rows == 4


def test_a_plus_adds_an_element_to_a_list(tmp_path: Path):
    over = "extends: base.yaml\nsources: {more: {source: clinic_facts}}\nsft: {data: {+more: {max_rows: 3}}}\n"
    made = recipe.load(write(tmp_path, top=over))
    assert made.sft and [(each.name, each.max_rows) for each in made.sft.data][-1] == ("more", 3)
    wrong = write(tmp_path, top=over.replace("max_rows", "max_row"))
    assert message_of(wrong).startswith(line(wrong, "+more"))
    assert "already" in message_of(write(tmp_path, top="extends: base.yaml\nsft: {data: {+facts: {max_rows: 3}}}\n"))
    assert "fields of the new element" in message_of(write(tmp_path, top=over.replace("{max_rows: 3}", "3")))


def test_a_map_over_a_plain_name_gives_it_fields(tmp_path: Path):
    made = recipe.load(write(tmp_path, top="extends: base.yaml\nsft: {data: {facts: {max_rows: 3}}}\n"))
    assert made.sft and [(each.name, each.max_rows) for each in made.sft.data] == [("facts", 3)]


def test_a_section_of_another_kind_replaces(tmp_path: Path):
    file = write(tmp_path, top=f"extends: base.yaml\nbase: {{kind: hub, id: a/b, revision: '{'0' * 40}'}}\n")
    assert recipe.load(file).base.kind == "hub"


def test_several_files_and_files_that_extend_files_are_laid_in_order(tmp_path: Path):
    made = recipe.load(
        write(
            tmp_path,
            one="seed: 1\ndescription: one\n",
            two="extends: one.yaml\nseed: 2\n",
            top="extends: [base.yaml, two.yaml]\nname: top\n",
        )
    )
    assert (made.seed, made.description, made.name) == (2, "one", "top")
    assert [path.name for path in yaml_file.extended(tmp_path / "top.yaml")] == ["two.yaml", "one.yaml", "base.yaml"]


def test_paths_are_relative_to_the_file_that_states_them(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mix.yaml").write_text("sources: {mine: {source: file, path: rows.jsonl, format: messages}}\n")
    made = recipe.load(write(tmp_path, top="extends: [base.yaml, deep/mix.yaml]\n"))
    assert made.sources["mine"].path == str(tmp_path / "deep" / "rows.jsonl")


def test_cluster_files_extend_too(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("train: {device: cpu, micro_batch_size: 2}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ntrain: {micro_batch_size: 4}\n")
    row = cluster.load(tmp_path / "b.yaml").train
    assert (row.device, row.micro_batch_size) == ("cpu", 4)


@pytest.mark.parametrize(
    ("top", "at", "says"),
    [
        ("extends: base.yaml\nsft: {learning_rat: 1}\n", "learning_rat", ["sft.learning_rat", "did you mean"]),
        ("extends: base.yaml\nrounds:\n  second:\n    beta: -1\n", "beta", ["rounds.1.beta", "-1"]),
        ("extends: base.yaml\nrounds:\n  secnd: {beta: 1}\n", "secnd", ["rounds.secnd", "did you mean 'second'?"]),
        ("extends: base.yaml\nrounds:\n  - {name: third}\n", "third", ["rounds.0.data", "missing"]),
        ("extends: bose.yaml\n", "extends", ["bose.yaml: no such file", "did you mean", "base.yaml"]),
        ("name: x\nextends: {a: b}\n", "extends", ["expected the path of a file", "{'a': 'b'}"]),
        ("name: x\nextends: top.yaml\n", "extends", ["top.yaml -> top.yaml", "may not extend itself"]),
    ],
)
def test_a_mistake_in_the_upper_file_names_that_file(tmp_path: Path, top: str, at: str, says: list[str]):
    file = write(tmp_path, top=top)
    message = message_of(file)
    assert message.startswith(line(file, at)), message
    assert all(word in message for word in says), message


def test_a_mistake_in_the_lower_file_names_the_lower_file(tmp_path: Path):
    file = write(tmp_path, top="extends: base.yaml\nname: top\nsft: {num_train_epochs: 2}\n")
    base = tmp_path / "base.yaml"
    base.write_text(VALID.replace("learning_rate: 1.0e-3", "learning_rate: -1").replace("beta: 0.2", "betta: 0.2"))
    first, second = sorted(message_of(file).splitlines())
    assert first.startswith(line(base, "learning_rate: -1")) and second.startswith(line(base, "betta"))


def test_a_ring_of_files_is_told_where_it_closes(tmp_path: Path):
    file = write(tmp_path, one="extends: two.yaml\n", two="extends: one.yaml\n")
    message = message_of(file)
    assert message.startswith(line(tmp_path / "one.yaml", "extends")) and "two.yaml -> one.yaml -> two.yaml" in message


def test_an_override_is_still_named_first(tmp_path: Path):
    file = write(tmp_path, top="extends: base.yaml\n")
    assert message_of(file, "rounds.second.beta=-2").startswith("--set rounds.second.beta=-2: rounds.1.beta")
    assert "unknown field" in message_of(file, "extends=base.yaml")


# What has no end, or nearly none


def doubled(line: str, times: int = 40) -> str:
    return "".join(f"a{n}: &a{n} {line.replace('BELOW', f'*a{n - 1}') if n else '{x: 1}'}\n" for n in range(times))


HUGE = {
    "aliases that double": doubled("[BELOW, BELOW]"),
    "merges that double": doubled("{<<: [BELOW, BELOW]}"),
    "an alias in its own anchor": "name: &a [*a]\n",
    "many fields": "".join(f"f{number}: 1\n" for number in range(60_000)),
    "nested lists": f"a: {'[' * 200_000}{']' * 200_000}\n",
    "nested maps": "a: " + "{a: " * 5000 + "}" * 5000,
    "many bytes": f"description: {'x' * (2 << 20)}\n",
    "a number of very many digits": f"seed: {'9' * 50_000}\n",
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE.keys())
def test_what_blows_up_is_one_short_message_soon(tmp_path: Path, text: str):
    began = time.process_time()
    file = write(tmp_path, top=text)
    assert message_of(file).startswith(f"{file}: ") and len(message_of(file)) < 400
    with pytest.raises(UserError):
        cluster.load(file)
    if len(text) < 100_000:  # a word of a command line
        assert len(message_of(tmp_path / "base.yaml", f"sft.lora={text}")) < 1200
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{data: [facts], data: [facts]}", "field 'data' is given twice"),
        ("{2020-01-01: 1}", "read as datetime.date(2020, 1, 1) (date): put it in quotes"),
        ("{!!binary aGk=: 1}", "read as b'hi' (bytes)"),
        ("{1.5: 1}", "read as 1.5 (float)"),
        ("{on: 1}", "read as True (bool)"),
        ("2020-99-99", "'2020-99-99' cannot be read as timestamp"),
        ("!!bool maybe", "'maybe' cannot be read as bool"),
        ("!!timestamp now", "'now' cannot be read as timestamp"),
        ("&a [*a]", "an alias stands inside its own anchor"),
    ],
)
def test_odd_values_are_the_same_message_in_a_file_and_after_set(tmp_path: Path, text: str, says: str):
    file = write(tmp_path, top=f"extends: base.yaml\nsft: {text}\n")
    assert message_of(file).startswith(f"{file}: not valid YAML: line 2") and says in message_of(file)
    assert message_of(tmp_path / "base.yaml", f"sft={text}").startswith(f"--set sft={text}: ")
    assert says in message_of(tmp_path / "base.yaml", f"sft={text}")


def test_files_that_each_extend_two_end(tmp_path: Path):
    for number in range(40):
        below = [f"f{number - 1}.yaml"] * 2 if number else ["base.yaml"]
        file = write(tmp_path, **{f"f{number}": f"extends: [{', '.join(below)}]\n"})
    assert "extends more than 100 files" in message_of(file)


def test_very_many_mistakes_are_told_in_part(tmp_path: Path):
    lines = message_of(write(tmp_path, top="".join(f"f{number}: 1\n" for number in range(9000)))).splitlines()
    assert len(lines) < 40 and lines[-1].endswith("mistakes more")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "of the kernel"])
def test_what_is_no_file_is_told_and_not_read(tmp_path: Path, kind: str):
    """Whoever opened the pipe, or `/proc/kmsg`, would wait for ever."""
    place = {"pipe": tmp_path / "pipe.yaml", "device": Path("/dev/zero"), "folder": tmp_path, "of the kernel": Path("/proc/kmsg")}[kind]
    if kind == "pipe":
        os.mkfifo(place)
    base = write(tmp_path / "recipes")
    (tmp_path / "recipes" / "top.yaml").write_text(f"extends: {place}\n")
    (tmp_path / "cluster.yaml").write_text(f"train: {{deepspeed: {place}}}\n")
    for wrong in (lambda: recipe.load(place), lambda: recipe.load(tmp_path / "recipes" / "top.yaml"), lambda: cluster.load(place)):
        with pytest.raises(UserError, match=re.escape(str(place))):
            wrong()
    with pytest.raises(UserError, match="deepspeed"):
        cluster.load(tmp_path / "cluster.yaml")
    if kind != "of the kernel":
        with pytest.raises(UserError, match=f"{re.escape(str(place))}: no such file, but a"):
            shipped.find(place, "recipe")
    for field in (
        "base.chat_template={}",
        "sources.facts.system_prompt={}",
        *(["base={{kind: local, path: {}}}", "sources.facts={{source: file, path: {}, format: messages}}"] if kind != "folder" else []),
    ):
        made = recipe.load(base, (field.format(place),))
        with pytest.raises(UserError, match=re.escape(field.partition("{")[0].rstrip("="))):
            pipeline.build_plan(made, tmp_path / "store", base.parent)
