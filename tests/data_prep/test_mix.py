"""Which rows a mix takes, and their order, depend on seed and ids, not on the order in which rows came."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rounds.data_prep.errors import UserError
from rounds.data_prep.mix import choose, counts, mix, repeated_id
from rounds.data_prep.schema import MixItem

IDS = st.lists(st.text(max_size=4), unique=True, max_size=40)


def names(ids_by_name: dict[str, list[str]], items: list[MixItem], seed: int) -> list[tuple[str, str]]:
    places = mix(ids_by_name, items, seed)
    return [(each.name, repeated_id(ids_by_name[each.name][each.place], each.repeat)) for each in places]


@given(IDS, IDS, st.floats(0.01, 1), st.integers(1, 30), st.integers(0, 3), st.randoms())
def test_a_mix_does_not_depend_on_the_order_of_rows_or_items(
    one: list[str], two: list[str], fraction: float, most: int, seed: int, order: random.Random
) -> None:
    items = [MixItem(name="one", keep_fraction=fraction), MixItem(name="two", max_rows=most)]
    before = names({"one": one, "two": two}, items, seed)
    order.shuffle(one)
    order.shuffle(two)
    assert names({"two": two, "one": one}, items[::-1], seed) == before
    assert len(before) == len(set(before))
    assert sum(name == "two" for name, _ in before) == min(most, len(two))
    assert sum(name == "one" for name, _ in before) == (max(1, round(fraction * len(one))) if one else 0)


def test_another_seed_is_another_mix() -> None:
    ids, items = {"one": [str(number) for number in range(100)]}, [MixItem(name="one", max_rows=50)]
    assert set(names(ids, items, 0)) != set(names(ids, items, 1))
    whole = [MixItem(name="one")]
    assert set(names(ids, whole, 0)) == set(names(ids, whole, 1))
    assert names(ids, whole, 0) != names(ids, whole, 1)


def test_a_source_kept_in_part_is_spread_over_the_mix() -> None:
    ids = {"part": [f"p{number}" for number in range(1000)], "all": [f"a{number}" for number in range(1000)]}
    found = names(ids, [MixItem(name="part", keep_fraction=0.1), MixItem(name="all")], 0)
    front = sum(name == "part" for name, _ in found[: len(found) // 2])
    assert 35 <= front <= 65  # 50 expected of 100; standard deviation 5


def test_two_choices_for_two_purposes_are_independent() -> None:
    ids = [str(number) for number in range(1000)]
    first = [ids[place] for place in choose(ids, 500, "source", 0)]
    second = {ids[place] for place in choose(ids, 500, "mix", 0)}
    assert 200 <= len(second & set(first)) <= 300


def test_most_rows_stay_chosen_when_rows_are_added() -> None:
    ids = [str(number) for number in range(1000)]
    before = {ids[place] for place in choose(ids, 100, "mix", 0)}
    more = [*ids, *(f"new{number}" for number in range(100))]
    after = {more[place] for place in choose(more, 100, "mix", 0)}
    assert len(before & after) >= 75


@given(IDS.filter(bool), st.floats(0.05, 4), st.integers(1, 30), st.integers(0, 3), st.randoms())
def test_epochs_repeat_the_kept_rows_and_some_of_them_once_more(
    ids: list[str], epochs: float, most: int, seed: int, order: random.Random
) -> None:
    item = MixItem(name="one", max_rows=most, epochs=epochs)
    before = mix({"one": ids}, [item], seed)
    used, times = min(most, len(ids)), Counter(ids[each.place] for each in before)
    assert len(before) == max(1, round(used * epochs)) == counts({"one": len(ids)}, [item])["one"]
    assert set(times.values()) <= {max(1, int(epochs)), int(epochs) + 1}
    assert len({(each.place, each.repeat) for each in before}) == len(before)
    shuffled = ids.copy()
    order.shuffle(shuffled)
    assert names({"one": shuffled}, [item], seed) == names({"one": ids}, [item], seed)


def test_copies_have_ids_of_their_own() -> None:
    assert [repeated_id("7", repeat) for repeat in range(3)] == ["7", "7~2", "7~3"]
    found = [name for _, name in names({"one": ["a", "b"]}, [MixItem(name="one", epochs=2.5)], 0)]
    assert len(set(found)) == 5
    assert {"a", "b", "a~2", "b~2"} < set(found)


def test_a_copy_never_takes_the_id_of_a_row() -> None:
    ids = {"7", "7~2", "7~2~", "7~2~2"}
    copies = [repeated_id(each, repeat, ids) for each in sorted(ids) for repeat in range(1, 4)]
    assert len({*copies, *ids}) == len(copies) + len(ids)


def test_shares_cut_what_has_a_share_to_fit_what_has_none() -> None:
    """The arithmetic of the paper's re-weighted mix: all listed medical rows, and 26.5 % general ones beside them."""
    items = [MixItem(name="medical"), MixItem(name="orca", share=0.2257), MixItem(name="chat", share=0.0393)]
    found = counts({"medical": 547_542, "orca": 292_576, "chat": 50_953}, items)
    assert found["medical"] == 547_542
    assert sum(found.values()) == pytest.approx(547_542 / 0.735, abs=2)
    assert (found["orca"] + found["chat"]) / sum(found.values()) == pytest.approx(0.265, abs=1e-5)
    assert found["chat"] / sum(found.values()) == pytest.approx(0.0393, abs=1e-5)


def test_a_share_that_its_source_cannot_fill_cuts_the_others() -> None:
    items = [MixItem(name="a"), MixItem(name="b"), MixItem(name="c", share=0.5)]
    assert counts({"a": 60, "b": 40, "c": 50}, items) == {"a": 30, "b": 20, "c": 50}
    assert counts({"a": 60, "b": 40, "c": 500}, items) == {"a": 60, "b": 40, "c": 100}
    more = [*items[:2], MixItem(name="c", share=0.5, epochs=2)]
    assert counts({"a": 60, "b": 40, "c": 50}, more) == {"a": 60, "b": 40, "c": 100}


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0.05, 1)), min_size=1, max_size=5), st.integers(0, 9000))
def test_shares_hold_and_no_source_gives_more_than_it_has(parts: list[tuple[int, float]], free: int) -> None:
    whole = sum(weight for _, weight in parts) * (1.25 if free else 1)
    items = [MixItem(name=str(place), share=weight / whole) for place, (_, weight) in enumerate(parts)]
    rows = {str(place): count for place, (count, _) in enumerate(parts)}
    if free:
        items, rows = [*items, MixItem(name="free")], {**rows, "free": free}
    found = counts(rows, items)
    total = sum(found.values())
    assert all(found[name] <= rows[name] for name in rows)
    assert any(found[name] >= rows[name] - 1 for name in rows), "a larger mix would do"
    for item in items:
        assert abs(found[item.name] - (item.share or 0.2) * total) <= 1 + len(items) / 2


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([MixItem(name="a", share=0.5), MixItem(name="b", share=0.4)], "sum to 0.9; expected 1"),
        ([MixItem(name="a", share=1.0), MixItem(name="b")], "leaves nothing for the others"),
        ([MixItem(name="none", share=0.5), MixItem(name="b")], "no rows are left of none"),
        ([MixItem(name="a", share=0.5), MixItem(name="none")], "no rows are left of the sources without a `share`"),
    ],
)
def test_shares_that_cannot_be_met_are_one_message(items: list[MixItem], said: str) -> None:
    with pytest.raises(UserError, match=said):
        counts({"a": 10, "b": 10, "none": 0}, items)
