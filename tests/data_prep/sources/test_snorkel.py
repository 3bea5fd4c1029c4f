"""Snorkel's columns become pairs, for each of its iterations; the test splits are for evaluation."""

from pathlib import Path

from rounds.data_prep.records import Message
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import snorkel


def row(number: int, prompt: str, chosen: str, rejected: str) -> dict:
    """One row in the set's schema, of our own."""
    return {
        "prompt_id": f"p{number}",
        "prompt": prompt,
        "chosen": [{"content": prompt, "role": "user"}, {"content": chosen, "role": "assistant"}],
        "rejected": [{"content": prompt, "role": "user"}, {"content": rejected, "role": "assistant"}],
        "all_generated_responses": [rejected, chosen],
        "all_rm_scores": [-1.0, 2.5],
    }


ROWS = [
    row(1, "How long to boil an egg?", "About ten minutes.", "One day."),
    row(2, "Is tea hot?", "When freshly made.", "Is it?"),
    row(3, "Say hello.", "Hello!", "Hello!"),
]


def test_hub_rows_become_pairs(tmp_path: Path, write_parquet, convert) -> None:
    for split in snorkel.SOURCE.splits:
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", ROWS)
    for split in snorkel.SOURCE.splits:
        records, reasons = convert(SourceUse(source="snorkel", split=split, path=str(tmp_path)))
        assert [record.group for record in records] == ["p1", "p2"]
        assert reasons == {"identical_answers": 1}
    assert records[0].prompt == (Message("user", "How long to boil an egg?"),)
    assert (records[0].chosen, records[0].rejected) == ("About ten minutes.", "One day.")


def test_test_splits_are_for_evaluation() -> None:
    tests = {split for split in snorkel.SOURCE.splits if split.startswith("test")}
    assert tests == set(snorkel.SOURCE.evaluation_only)
    assert len(tests) == 3
