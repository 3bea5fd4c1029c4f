"""What every registered source tells about its set, so that a person can judge it before a row is read."""

import importlib
import re
from pathlib import Path

import pytest

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import SourceUse

PUBLIC = [name for name in sources.names() if name not in ("file", "clinic_facts")]
PAPER = (
    "medmcqa medical_flashcards stackexchange medqa cord19 pubmedqa headqa mediqa sciq pubmed_causal opengpt medquad "
    "mmlu_medical natural_instructions pubhealth medical_instruction aci_bench mts_dialog slim_orca ultrachat "
    "ultrafeedback snorkel"
)
BENCHMARK_TESTS = {
    "medmcqa": "validation",  # what harnesses score: the test rows have no public labels
    "medqa": "test",
    "headqa": "test",
    "mmlu_medical": "test",
    "pubmedqa": "labeled",
    "mmlu_pro": "clinical",
    "toxigen": "test",
    "usmle": "test",
    "xstest": "completions",
    "med_safety": "test",
    "gsm8k": "test",
    "ifeval": "test",
}


def docstring(name: str) -> str:
    return importlib.import_module(f"rounds.data_prep.sources.{name}").__doc__ or ""


def test_every_set_of_the_paper_is_here() -> None:
    assert set(PAPER.split()) <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_source_says_what_it_is(name: str) -> None:
    source = sources.load(name)
    assert source.name == name
    assert source.description
    assert len(source.description) < 100
    # Left empty where the set's card names none, so that a build that asks for licences can stop.
    assert bool(source.licence) != ("Licence: the card names none" in " ".join(docstring(name).split()))
    assert source.licence == source.licence.lower().strip()
    assert source.splits
    assert source.columns
    assert set(source.evaluation_only) <= set(source.splits)
    assert set(source.splits.values()) <= {"conversation", "question", "pair", "prompt"}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_commit_is_whole_and_what_is_not_verified_says_so(name: str) -> None:
    source, text = sources.load(name), docstring(name)
    for revision in (source.revision, *(each.revision for each in source.companions)):
        assert revision is None or re.fullmatch(r"[0-9a-f]{40}", revision)
    assert source.revision or source.repository is None or not source.verified
    if not source.verified:
        assert "`verified` is off" in text or "could not be checked" in text


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_tells_in_out_licence_link_and_one_row(name: str) -> None:
    text = docstring(name)
    for said in ("In: ", "Out: ", "Licence: ", "https://", "Example row, of our own"):
        assert said in " ".join(text.split()), said
    assert re.search(r"^    \{\"", text, re.MULTILINE), "no example row"
    example = text[text.index("Example row") :]
    columns = [column for column in sources.load(name).columns if f'"{column}"' in example]
    assert columns == list(sources.load(name).columns)


@pytest.mark.parametrize(("name", "split"), BENCHMARK_TESTS.items())
def test_what_harnesses_score_is_for_evaluation_only(name: str, split: str) -> None:
    assert split in sources.load(name).evaluation_only


@pytest.mark.parametrize("name", PUBLIC)
def test_every_test_split_is_for_evaluation_only(name: str) -> None:
    source = sources.load(name)
    assert {split for split in source.splits if "test" in split} <= set(source.evaluation_only)


@pytest.mark.parametrize("name", [name for name in PUBLIC if sources.load(name).check_use is None])
def test_a_split_that_is_not_offered_is_refused_before_any_row(name: str) -> None:
    with pytest.raises(UserError, match="has no split 'no such split'"):
        sources.load(name).check(SourceUse(source=name, split="no such split"))


@pytest.mark.parametrize(
    ("split", "revision", "repository", "commit"),
    [
        ("train", None, "bigbio/pubmed_qa", "32707c4b9e3a7d8f5c34eae183a1924620839768"),
        ("labeled", None, "qiaojin/PubMedQA", "9001f2853fb87cab8d220904e0de81ac6973b318"),
        ("labeled", "a" * 40, "qiaojin/PubMedQA", "a" * 40),
    ],
)
def test_each_split_tells_the_set_that_it_lives_in(
    split: str, revision: str | None, repository: str, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, use = sources.load("pubmedqa"), SourceUse(source="pubmedqa", split=split, revision=revision)
    asked: list[tuple[str, str | None]] = []

    def download(name: str, commit: str | None, patterns: object) -> Path:
        asked.append((name, commit))
        raise UserError("not fetched in tests")

    monkeypatch.setattr("rounds.data_prep.hub.download", download)
    with pytest.raises(UserError, match="not fetched"):
        list(source.rows(use))
    home = source.home(use)
    assert home and asked == [(home.repository, home.revision)] == [(repository, commit)]


def test_a_set_without_a_hub_copy_asks_for_a_path_while_planning() -> None:
    with pytest.raises(UserError, match=r"on GitHub only; clone .* `path:`"):
        sources.load("mts_dialog").check(SourceUse(source="mts_dialog"))
