"""Records come back from their files as they were, also those that an earlier release wrote."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.records import (
    Conversation,
    Message,
    Pair,
    Prompt,
    answers_of,
    characters_of,
    kind_of,
    prompt_of,
    read_kind,
    read_records,
    write_records,
)

ASKED = Message("user", "How much?")
PLAIN = Conversation("a", "made", (Message("system", "Be brief."), ASKED, Message("assistant", "5 mg.")))
UNLEARNT = Conversation("b", "made", (ASKED, Message("assistant", "Say more.", learnt=False), ASKED, Message("assistant", "5 mg.")))
THOUGHT = Conversation("c", "made", (ASKED, Message("assistant", "5 mg.", reasoning="50 kg.")), "doses")


def test_what_is_not_learnt_and_what_was_thought_are_kept(tmp_path: Path) -> None:
    rows = [PLAIN, UNLEARNT, THOUGHT]
    assert write_records(tmp_path / "rows.parquet", rows, "conversation") == 3
    assert list(read_records(tmp_path / "rows.parquet")) == rows
    pair = Pair("d", "made", (*THOUGHT.messages, ASKED), "Yes.", "No.")
    thoughtful = Pair("e", "made", (ASKED,), "5 mg.", "9 mg.", rejected_reasoning="A guess.", rejected_ending="cut")
    write_records(tmp_path / "pairs.parquet", [pair, thoughtful], "pair")
    assert list(read_records(tmp_path / "pairs.parquet")) == [pair, thoughtful]
    newer = pq.read_table(tmp_path / "pairs.parquet").drop_columns(["rejected_ending"])
    pq.write_table(newer, tmp_path / "newer.parquet")
    assert list(read_records(tmp_path / "newer.parquet")) == [pair, replace(thoughtful, rejected_ending="")]
    pq.write_table(newer.drop_columns(["chosen_reasoning", "rejected_reasoning"]), tmp_path / "old.parquet")
    assert list(read_records(tmp_path / "old.parquet")) == [pair, Pair("e", "made", (ASKED,), "5 mg.", "9 mg.")]


def test_a_prompt_is_kept_with_the_answer_and_the_choices_that_are_known(tmp_path: Path) -> None:
    bare = Prompt("e", "made", (Message("system", "Be brief."), ASKED))
    full = Prompt("f", "made", (ASKED,), "5 mg", ("5 mg", "50 mg"), '{"unit": "mg"}', "doses")
    write_records(tmp_path / "prompts.parquet", [bare, full], "prompt")
    assert read_kind(tmp_path / "prompts.parquet") == kind_of(full) == "prompt"
    assert list(read_records(tmp_path / "prompts.parquet")) == [bare, full]
    assert prompt_of(full) == (ASKED,) and answers_of(full) == full.choices and answers_of(bare) == ()
    assert characters_of(full) == len(ASKED.content) + len("5 mg50 mg")
    assert characters_of(Prompt("g", "made", (ASKED,), "5 mg")) == len(ASKED.content) + len("5 mg")


def test_a_file_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("id", pa.string()), ("source", pa.string()), ("group", pa.string()), ("messages", turns)])
    messages = [{"role": turn.role, "content": turn.content} for turn in PLAIN.messages]
    row = {"id": "a", "source": "made", "group": "", "messages": messages}
    pq.write_table(pa.Table.from_pylist([row], schema), tmp_path / "rows.parquet")
    assert list(read_records(tmp_path / "rows.parquet")) == [PLAIN]
