"""The first of several equal records stays, whatever their case and spacing."""

from rounds.data_prep import filters
from rounds.data_prep.records import Conversation, Message, Pair
from rounds.data_prep.schema import FilterUse


def talk(question: str, answer: str) -> Conversation:
    return Conversation("c", "s", (Message("user", question), Message("assistant", answer)))


def test_a_repeated_record_is_dropped_across_batches() -> None:
    rule = filters.build(FilterUse(name="exact_dedup"), [])
    assert rule([talk("Why?", "So."), talk("why? ", " SO.\n"), talk("Why?", "No.")]) == [None, "duplicate", None]
    assert rule([talk("WHY?", "so.")]) == ["duplicate"]


def test_raised_digits_are_others() -> None:
    rule = filters.build(FilterUse(name="exact_dedup"), [])
    assert rule([talk("How many?", "105 a litre"), talk("How many?", "10⁵ a litre"), talk("How many?", "ＬＯ")]) == [None] * 3
    assert rule([talk("How many?", "lo")]) == ["duplicate"]


def test_pairs_that_differ_in_one_side_or_in_order_stay() -> None:
    prompt = (Message("user", "Why?"),)
    pairs = [Pair("p", "s", prompt, *sides) for sides in (("a", "b"), ("a", "c"), ("b", "a"), ("a", "b"))]
    assert filters.build(FilterUse(name="exact_dedup"), [])(pairs) == [None, None, None, "duplicate"]


def test_on_prompt_one_answer_stays() -> None:
    rule = filters.build(FilterUse.model_validate({"name": "exact_dedup", "on": "prompt"}), [])
    assert rule([talk("Why?", "So."), talk("why?", "No.")]) == [None, "duplicate_prompt"]


def test_parts_do_not_run_together() -> None:
    rule = filters.build(FilterUse(name="exact_dedup"), [])
    assert rule([talk("a b", "c"), talk("a", "b c")]) == [None, None]
