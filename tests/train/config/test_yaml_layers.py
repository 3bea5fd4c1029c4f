"""`extends`: a recipe states its differences from another, and every mistake still names its own file and line."""

from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.config import cluster, recipe, yaml_file
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
