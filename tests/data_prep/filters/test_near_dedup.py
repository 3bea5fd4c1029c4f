"""The first of several records that are nearly the same stays; records that only share some words all stay."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from rounds.data_prep import filters
from rounds.data_prep.records import Conversation, Message, Pair, Record
from rounds.data_prep.schema import FilterUse

NOTE = (
    "The district nurse visits every second morning to change the dressing, weigh the patient and ask about "
    "breathlessness at night, swollen ankles, appetite and sleep; she then writes her findings into the shared book, "
    "rings the practice when the weight has gone up by two kilograms in a week and reminds the family to bring all "
    "tablets, also those from the herbalist, to the next appointment at the heart failure clinic in the old hospital."
)


def talk(question: str, answer: str) -> Conversation:
    return Conversation("c", "s", (Message("user", question), Message("assistant", answer)))


def answer(records: list[Record], **options: float) -> list[object]:
    return list(filters.build(FilterUse.model_validate({"name": "near_dedup", **options}), [])(records))


def random_text(draw: random.Random, length: int) -> list[str]:
    return [f"w{draw.randrange(3000)}" for _ in range(length)]


def runs(words: Sequence[str], size: int = 5) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def test_a_small_edit_is_a_duplicate_and_a_large_one_is_not() -> None:
    small, large = NOTE.replace("two kilograms", "2 kg"), NOTE[: len(NOTE) // 2] + " That is all she does."
    assert answer([talk("What?", NOTE), talk("What?", small), talk("What?", large)]) == [None, "near_duplicate", None]


def test_the_first_seen_stays_across_batches_and_kinds_of_space() -> None:
    rule = filters.build(FilterUse(name="near_dedup"), [])
    assert rule([talk("What?", NOTE), talk("Who?", "Nobody at all.")]) == [None, None]
    assert rule([talk("what", NOTE.upper().replace(" ", "\n")), talk("Who?", "Nobody at all!")]) == ["near_duplicate"] * 2
    assert rule([]) == []


def test_the_threshold_is_the_real_similarity() -> None:
    words = NOTE.split()
    changed = [*words[:-8], *(f"new{place}" for place in range(8))]
    one, other = runs(words), runs(changed)
    share = len(one & other) / len(one | other)
    assert 0.7 < share < 0.9
    # The prompt's one run is in common too.
    share = (len(one & other) + 1) / (len(one | other) + 1)
    rows: list[Record] = [talk("?", " ".join(words)), talk("?", " ".join(changed))]
    assert answer(rows, jaccard=share - 0.01) == [None, "near_duplicate"]
    assert answer(rows, jaccard=share + 0.01) == [None, None]


def test_a_pair_and_its_reverse_both_stay() -> None:
    prompt = (Message("user", "What does she do?"),)
    pairs: list[Record] = [Pair("p", "s", prompt, NOTE, NOTE[::-1]), Pair("p", "s", prompt, NOTE[::-1], NOTE)]
    assert answer([*pairs, pairs[0]]) == [None, None, "near_duplicate"]


def test_parts_shorter_than_a_run_do_not_run_together() -> None:
    assert answer([talk("a b", "c"), talk("a", "b c"), talk("", ""), talk("?", "!"), talk("a b", "c.")]) == [
        None, None, None, "near_duplicate", "near_duplicate"
    ]  # fmt: skip


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_against_every_pair_compared(seed: int, size: int) -> None:
    """What is dropped is alike; what is kept is not, but for the few that the bands may miss close to the threshold."""
    draw = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(20):
        words = list(draw.choice(texts)) if texts and draw.random() < 0.5 else random_text(draw, draw.randrange(60, 200))
        if draw.random() < 0.5:
            words[draw.randrange(len(words))] = "edited"
        texts.append(words)
    rule = filters.build(FilterUse(name="near_dedup"), [])
    rows: list[Record] = [talk("?", " ".join(words)) for words in texts]
    found = [each for start in range(0, 20, size) for each in rule(rows[start : start + size])]
    kept: list[set[tuple[str, ...]]] = []
    for words, verdict in zip(texts, found, strict=True):
        mine = runs(words) | {("?",)}
        alike = max((len(mine & other) / len(mine | other) for other in kept), default=0.0)
        assert alike >= 0.8 if verdict else alike < 0.83
        kept += [] if verdict else [mine]


@given(st.integers(0, 10_000))
def test_unrelated_words_all_stay(seed: int) -> None:
    draw = random.Random(seed)
    assert set(answer([talk("What?", " ".join(random_text(draw, 80))) for _ in range(40)])) == {None}


def test_real_answers(shared_data: Path) -> None:
    lines = (shared_data / "medquad" / "medquad_answered.jsonl").read_text(encoding="utf-8").splitlines()[:3000]
    rows = [json.loads(line) for line in lines]
    found = answer([talk(row["question"], row["answer"]) for row in rows])
    # 155 by the plain way, each row compared with every kept row that shares a run with it.
    assert sum(verdict is not None for verdict in found) == 155
