"""A set is read the same from a hub-shaped folder, a saved dataset and a file; what is missing is named."""

import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from rounds.data_prep import hub
from rounds.data_prep.errors import UserError
from rounds.data_prep.files import FILE, ROW
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.turns import RowError

ROWS = [{"a": 1, "b": {"c": ["x"]}}, {"a": 2, "b": {"c": []}}, {"a": 3, "b": None}]


def read(path: Path, split: str = "train", config: str | None = None) -> list:
    """The rows of a copy, without the number and the file that readers add."""
    use = SourceUse(source="ultrafeedback", path=str(path))
    found = hub.rows(use, "some/set", revision=None, split=split, config=config)
    return [{name: value for name, value in row.items() if name not in (ROW, FILE)} for row in found if not isinstance(row, RowError)]


def test_the_folder_layout_of_the_hub_is_read(tmp_path: Path, write_parquet) -> None:
    write_parquet(tmp_path / "data" / "train_prefs-00000-of-00001.parquet", ROWS)
    write_parquet(tmp_path / "data" / "test_prefs-00000-of-00001.parquet", ROWS[:1])
    assert read(tmp_path, "train_prefs") == ROWS
    assert read(tmp_path, "test_prefs") == ROWS[:1]


@pytest.mark.parametrize("readme", [True, False])
def test_a_configuration_is_found_with_and_without_a_readme(tmp_path: Path, write_parquet, readme: bool) -> None:
    write_parquet(tmp_path / "one" / "train-00000-of-00001.parquet", ROWS[:1])
    write_parquet(tmp_path / "two" / "train-00000-of-00001.parquet", ROWS)
    if readme:
        configs = "".join(f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n" for name in ("one", "two"))
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert read(tmp_path, config="two") == ROWS


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "single")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "several")
    assert read(tmp_path / "single") == read(tmp_path / "several") == ROWS
    with pytest.raises(UserError, match="no split 'trian': did you mean 'train'"):
        read(tmp_path / "several", "trian")


def test_one_file_is_read(tmp_path: Path, write_parquet) -> None:
    rows = read(write_parquet(tmp_path / "any-name.parquet", ROWS))
    assert [row["a"] for row in rows] == [1, 2, 3]


def test_a_missing_split_is_named_with_those_there_are(tmp_path: Path, write_parquet) -> None:
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", ROWS)
    with pytest.raises(UserError, match=r"no split 'test'.*Valid: train"):
        read(tmp_path, "test")


def test_folders_without_rows_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder has no data files"):
        read(tmp_path / "empty")
    (tmp_path / "broken" / "data").mkdir(parents=True)
    (tmp_path / "broken" / "data" / "train-00000-of-00001.parquet").write_text("nonsense")
    with pytest.raises(UserError, match="Parquet magic bytes"):
        read(tmp_path / "broken")
    with pytest.raises(UserError, match="no such file or folder"):
        read(tmp_path / "absent")


def test_code_in_a_set_is_not_run(tmp_path: Path) -> None:
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="the folder has no data files"):
        read(tmp_path)


def test_the_hub_is_not_asked_without_a_revision() -> None:
    with pytest.raises(UserError, match=r"some/set: no revision is pinned.*`revision:`.*`path:`"):
        list(hub.rows(SourceUse(source="snorkel"), "some/set", revision=None, split="train"))


def test_an_unreachable_hub_says_what_was_looked_for_and_what_to_do() -> None:
    use = SourceUse(source="snorkel", revision="0123abc")
    with pytest.raises(UserError, match=r"some/set at 0123abc.*HF_HUB_OFFLINE.*`path:`"):
        list(hub.rows(use, "some/set", revision=None, split="train"))


def test_planning_imports_neither_datasets_nor_torch() -> None:
    code = (
        "import sys; from rounds.data_prep import build, filters, sources; [sources.load(name) for name in sources.names()];"
        "from rounds.data_prep.schema import FilterUse; [filters.settings(FilterUse(name=n)) for n in ('exact_dedup',"
        "'decontaminate')]; assert not {'datasets', 'torch', 'transformers', 'pandas'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
