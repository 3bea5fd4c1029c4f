"""UltraFeedback's columns become pairs; ties and equal answers are dropped without being bad rows."""

from pathlib import Path

import pytest

from rounds.data_prep.records import Message
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import RowError, ultrafeedback


def row(prompt: str, chosen: str, rejected: str, better: float = 8.0, worse: float = 4.0) -> dict:
    """One row in the set's schema, of our own."""
    sides = [[{"content": prompt, "role": "user"}, {"content": each, "role": "assistant"}] for each in (chosen, rejected)]
    return {
        "prompt": prompt,
        "prompt_id": f"id of {prompt}",
        "chosen": sides[0],
        "rejected": sides[1],
        "messages": sides[0],
        "score_chosen": better,
        "score_rejected": worse,
    }


ROWS = [
    row("Name a bone.", "The femur.", "The heart."),
    row("Name a bone.", "The ulna.", "The liver."),
    row("Name a vein.", "The jugular.", "The aorta.", better=7.5),
]


def test_hub_rows_become_pairs(tmp_path: Path, write_parquet, convert) -> None:
    write_parquet(tmp_path / "data" / "train_prefs-00000-of-00001.parquet", ROWS)
    write_parquet(tmp_path / "data" / "test_prefs-00000-of-00001.parquet", ROWS[:1])
    records, reasons = convert(SourceUse(source="ultrafeedback", split="train_prefs", path=str(tmp_path)))
    assert not reasons
    assert (records[0].chosen, records[0].rejected) == ("The femur.", "The heart.")
    assert records[0].prompt == (Message("user", "Name a bone."),)
    assert len({record.id for record in records}) == 3
    assert len({record.group for record in records}) == 2


@pytest.mark.parametrize(
    ("wrong", "reason", "bad"),
    [
        (row("Why?", "Because.", "Because.", 5.0, 1.0), "identical_answers", False),
        (row("Why?", "Because.", "No.", 5.0, 5.0), "tied_scores", False),
        (row("Why?", "Because.", "No.", 2.0, 8.0), "scores_contradict_sides", True),
        (row("Why?", "Because.", "No.", float("nan"), 8.0), "score_not_a_number", True),
        (row("Why?", "Because.", "No.", "best", "worst"), "score_not_a_number", True),  # type: ignore[arg-type]
        (row("Why do we sleep?", "Why do we sleep? For rest.", "Why do  we sleep? No.", 8.0, 2.0), "prompt_repeated_in_answers", True),
        (ROWS[0] | {"rejected": ROWS[2]["rejected"]}, "prompts_differ", True),
        (ROWS[0] | {"chosen": None}, "empty_chosen", True),
        ({"prompt": "Why?"}, "missing_column_prompt_id", True),
    ],
)
def test_what_is_wrong_with_a_row_is_named(wrong: dict, reason: str, bad: bool) -> None:
    with pytest.raises(RowError, match=f"^{reason}$") as caught:
        ultrafeedback.SOURCE.convert(wrong, 0, SourceUse(source="ultrafeedback", split="train_prefs"))
    assert caught.value.bad is bad
