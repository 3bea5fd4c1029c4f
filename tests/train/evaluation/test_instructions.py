"""IFEval's instructions are checked by what lm-eval ships, offline, the same in every run."""

from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.engine import ifeval
from rounds.train.evaluation import instructions

PROMPT = "Write two sentences about sleep, without a comma."


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An untrained table of nltk's, in a folder that NLTK_DATA names."""
    pytest.importorskip("langdetect", reason="pip install 'rounds[ifeval]'")
    pytest.importorskip("immutabledict", reason="pip install 'rounds[ifeval]'")
    import nltk.data
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    folder = tmp_path / "nltk"
    (folder / ifeval.TABLE).mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("NLTK_DATA", str(folder))
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    save_punkt_params(PunktParameters(), str(folder / ifeval.TABLE / "english"))
    return tmp_path


def test_each_instruction_is_followed_or_not(table: Path) -> None:
    names = ["punctuation:no_comma", "length_constraints:number_sentences", "keywords:existence"]
    arguments = [{}, {"num_sentences": 2, "relation": "at least"}, {"keywords": ["sleep"], "unused": None}]
    assert ifeval.missing() == ""
    assert instructions.followed(PROMPT, names, arguments, "Sleep is rest. Rest heals.") == [True, True, True]
    assert instructions.followed(PROMPT, names, arguments, "A nap, well") == [False, False, False]
    assert instructions.followed(PROMPT, names, arguments, " ") == [False, False, False]


def test_the_language_of_an_answer_is_the_same_in_every_run(table: Path) -> None:
    names, arguments = ["language:response_language"], [{"language": "en"}]
    short = "Sore toe ok?"  # of which langdetect, left alone, thinks now this and now that
    assert len({tuple(instructions.followed(PROMPT, names, arguments, short)) for _ in range(40)}) == 1


def test_an_unknown_instruction_is_named(table: Path) -> None:
    with pytest.raises(UserError, match="keywords:absence"):
        instructions.followed(PROMPT, ["keywords:absence"], [{}], "Yes.")


def test_a_missing_table_is_said_with_what_to_do_and_nothing_is_downloaded(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval, "folders", lambda: [table / "empty"])
    with pytest.raises(UserError, match="downloader punkt_tab"):
        instructions.followed(PROMPT, ["punctuation:no_comma"], [{}], "Yes.")
