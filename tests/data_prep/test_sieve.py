"""Filters see what those before them leave, and the answer is the same whatever the number of processes."""

import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from rounds.data_prep import records, sieve
from rounds.data_prep.errors import UserError
from rounds.data_prep.filters import Changed, Remembering, Verdict
from rounds.data_prep.records import Conversation, Message, Question, Record
from tests import staged

FILTERS = ["exact_dedup", "near_dedup", "decontaminate", "quality", {"name": "exact_dedup", "on": "prompt"}]


def talk(name: str, question: str, answer: str) -> Conversation:
    return Conversation(name, "file", (Message("user", question), Message("assistant", answer)))


def test_a_changed_record_goes_on_to_later_filters_and_is_what_is_kept() -> None:
    def loud(asked: Sequence[Record]) -> list[Verdict]:
        new = [replace(each, messages=talk("", "why?", "[X]").messages) for each in asked if isinstance(each, Conversation)]
        return [Changed(record, {"x": 2}) if record.id in "13" else None for record in new]

    def no_three(asked: Sequence[Record]) -> list[Verdict]:
        seen.extend(asked)
        return ["three" if record.id == "3" else None for record in asked]

    rows, seen = [talk(name, "why?", "secret") for name in "1234"], []
    rules = [("loud", loud), ("no_three", no_three)]
    batch = sieve.prepare(rules, records.to_table(rows, "conversation"), rows, "conversation")
    found = sieve.decide("one", rules, batch)
    assert seen == [talk("1", "why?", "[X]"), rows[1], talk("3", "why?", "[X]"), rows[3]]
    kept = [replace(each, source="one") for each in (talk("1", "why?", "[X]"), rows[1], rows[3])]
    assert found.kept.equals(records.to_table(kept, "conversation"))
    assert (found.dropped, found.masked) == ({2: ("no_three", "three")}, {0: {"loud": {"x": 2}}})


def test_a_filter_that_remembers_is_asked_only_about_rows_that_those_before_it_keep() -> None:
    """It prepares for rows that another one drops when it decides, and must not remember them."""
    asked: list[list[str]] = [[], []]

    def remembering(index: int, dropped: str) -> Remembering:
        def decide(prepared: list[str], places: Sequence[int]) -> list[str | None]:
            asked[index] += [prepared[place] for place in places]
            return ["gone" if prepared[place] in dropped else None for place in places]

        return Remembering(lambda rows: [row.id for row in rows], decide)

    rows = [talk(name, "why?", "so") for name in "1234"]
    rules = [
        ("no_four", lambda rows: ["four" if row.id == "4" else None for row in rows]),
        ("first", remembering(0, "2")),
        ("second", remembering(1, "1")),
    ]
    batch = sieve.prepare(rules, records.to_table(rows, "conversation"), rows, "conversation")
    found = sieve.decide("one", rules, batch)
    assert asked == [["1", "2", "3"], ["1", "3"]]
    assert found.dropped == {0: ("second", "gone"), 1: ("first", "gone"), 3: ("no_four", "four")}
    assert found.kept["id"].to_pylist() == ["3"]


def sources(tmp_path: Path) -> dict[str, Path]:
    """Two sources in small batches, with rows that repeat across batches and sources, and a held-out set."""
    draw = random.Random(4)
    words = ["".join(draw.choices("abcdefghij", k=4)) for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=30)) for _ in range(150)]
    heldout = [Question(f"q{place}", "exam", (Message("user", texts[place]),), ("yes", "no"), 0) for place in range(5)]
    rows: list[Record] = [talk(f"a{place}", draw.choice(texts[:120]), draw.choice(texts)) for place in range(300)]
    rows += [talk(f"b{place}", draw.choice(texts), draw.choice(texts) + " more") for place in range(100)]
    asked: list[Record] = [replace(heldout[0], id=f"c{place}", prompt=(Message("user", texts[place]),)) for place in range(60)]
    for name, each in (("one", rows), ("two", asked), ("exam", heldout)):
        (tmp_path / name).mkdir()
        records.write_records(tmp_path / name / "records.parquet", each, records.kind_of(each[0]))
    return {"source.one": tmp_path / "one", "source.two": tmp_path / "two", "heldout.exam": tmp_path / "exam"}


def test_rows_kept_and_dropped_are_the_same_for_one_process_and_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BATCH_ROWS", 64)
    inputs, outs = sources(tmp_path), []
    uses = [each if isinstance(each, dict) else {"name": each} for each in FILTERS]
    params = {"mix": [{"name": "one"}, {"name": "two"}], "filters": uses, "seed": 0, "kind": "conversation"}
    for processes in (1, 3):
        out = tmp_path / str(processes)
        out.mkdir()
        counts = staged.run("data", params, inputs, out, SimpleNamespace(threads=processes))
        outs.append((counts, (out / "dropped.jsonl").read_text(), pq.read_table(out / "records.parquet")))
    assert outs[0][:2] == outs[1][:2]
    assert outs[0][2].equals(outs[1][2])
    assert all(outs[0][0]["dropped"][name] for name in ("exact_dedup", "decontaminate", "near_dedup"))


def test_a_killed_process_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BATCH_ROWS", 16)
    path = sources(tmp_path)["source.one"] / "records.parquet"
    sifted = sieve.sift({"one": path}, sieve.Sieve([], {}, "conversation"), 2)
    next(sifted)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(UserError, match="was killed"):
        list(sifted)
