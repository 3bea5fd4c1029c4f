"""Samples are read as they were written, and what is counted of them is what a person would count."""

from pathlib import Path

import pytest

from rounds.train.generation import samples
from rounds.train.generation.samples import Sample


def sample(prompt: str, number: int, answer: str, ids: list[int], ended: bool = True) -> Sample:
    return Sample(prompt, number, answer, ids, len(ids), ended, -1.5, 2**63 + number)


ROWS = [
    sample("p1", 0, "yes", [5, 6]),
    sample("p1", 1, "yes", [5, 6]),
    sample("p2", 0, "no <|x|>", [7, 6, 7], ended=False),
    sample("p2", 1, "", []),
]


def test_what_is_read_is_what_was_written(tmp_path: Path):
    samples.write(tmp_path / "set.parquet", samples.table(ROWS))
    assert list(samples.read(samples.file_of(tmp_path, "set"))) == ROWS
    names = ["prompt_id", "number", "answer", "token_ids", "tokens", "ended", "logprob", "seed"]
    assert samples.SCHEMA.names == names
    assert not list(tmp_path.glob("*.partial"))


def test_counts_are_those_of_the_texts_and_tokens():
    assert samples.counts(ROWS) == {
        "prompts": 2,
        "answers": 4,
        "tokens": 7,
        "ended_share": 0.75,
        "distinct_1": pytest.approx(3 / 7, abs=1e-4),
        "distinct_2": 0.75,  # (5,6), (5,6), (7,6), (6,7)
        "identical_share": 0.5,
    }
    assert "identical_share" not in samples.counts(ROWS[::2]), "one answer to each: there is nothing to be alike"
    assert samples.counts([])["ended_share"] is None
