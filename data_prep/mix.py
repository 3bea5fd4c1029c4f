"""How much of each source goes into a mix, and in which order.

In: how many rows of each source are left, and their ids. Out: the chosen rows in the order of the mix, a row that comes
more than once with the number of the repeat. All is decided by hashes of seed and id, so nothing depends on the order
in which rows or sources came.
"""

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import stable_hash
from rounds.data_prep.schema import MixItem

REPEAT = "~"
"""What stands between a row's id and the number of its repeat: the second copy of `7` is `7~2`."""


class Place(NamedTuple):
    """One row of a mix: the source's name, the row's place among that source's rows, and its repeat, from 0."""

    name: str
    place: int
    repeat: int


def counts(rows: Mapping[str, int], items: Sequence[MixItem]) -> dict[str, int]:
    """Return how many rows of each source a mix takes, of `rows` that are there. Reads no row: planning calls it too.

    Of n rows, the share `keep_fraction` (rounded, at least one row) and no more than `max_rows` are used, `epochs` times.
    That is what a source offers. Sources with a `share` then make up just that part of the mix: the mix is the largest
    one in which no source gives more than it offers. Sources without a share keep their proportions among themselves.
    Raises `UserError` where the shares cannot be met.
    """
    offered = {item.name: _offered(item, rows[item.name]) for item in items}
    shares = {item.name: item.share for item in items if item.share is not None}
    if not shares:
        return offered
    _check_shares(shares, items, offered)
    free = sum(count for name, count in offered.items() if name not in shares)
    left = 1 - sum(shares.values())
    # Each bound is the size of the mix in which that source, or those without a share together, give all they offer.
    bounds = [offered[name] / share for name, share in shares.items()]
    total = min(bounds if len(shares) == len(items) else [*bounds, free / left])
    return {name: min(count, round(total * (shares[name] if name in shares else count * left / free))) for name, count in offered.items()}


def mix(ids_by_name: Mapping[str, Sequence[str]], items: Sequence[MixItem], seed: int) -> list[Place]:
    """Return the chosen rows in the seeded order of the mix, each source as often as `counts` says."""
    wanted = counts({name: len(ids) for name, ids in ids_by_name.items()}, items)
    places: list[Place] = []
    for item in items:
        ids = ids_by_name[item.name]
        used = choose(ids, _used(item, len(ids)), "mix", seed)
        whole, part = divmod(wanted[item.name], len(used)) if used else (0, 0)
        places += [Place(item.name, place, repeat) for repeat in range(whole) for place in used]
        some = choose([ids[place] for place in used], part, "mix", seed)
        places += [Place(item.name, used[each], whole) for each in some]
    # A hash of its own: ordered by the hash that chose them, sources kept in part would all stand at the front.
    return sorted(places, key=lambda each: (stable_hash("order", seed, each.name, _id(each, ids_by_name)), each))


def choose(ids: Sequence[str], count: int, purpose: str, seed: int) -> list[int]:
    """Return the places of `count` rows (all, if there are fewer), in their order, the same rows in whatever order.

    `purpose` keeps two choices apart: chosen twice by one hash, half of a half would be the whole of that half.
    """
    if count >= len(ids):
        return list(range(len(ids)))
    keyed = ((stable_hash(purpose, seed, each), each, place) for place, each in enumerate(ids))
    # Not heapq.nsmallest, which takes four times as long where half of the rows are wanted.
    return sorted(place for _, _, place in sorted(keyed)[:count])


def repeated_id(name: str, repeat: int, taken: Container[str] = ()) -> str:
    """Return the id of a row's copy: its own for the first, then `ID~2`, `ID~3`, so that all ids of a mix differ.

    `taken` are ids of other rows that could be such a copy's; it then ends in further marks, which no two copies share.
    """
    found = f"{name}{REPEAT}{repeat + 1}" if repeat else name
    while repeat and found in taken:
        found += REPEAT
    return found


def _offered(item: MixItem, rows: int) -> int:
    used = _used(item, rows)
    return max(1, round(used * item.epochs)) if used else 0


def _used(item: MixItem, rows: int) -> int:
    return min(rows, max(1, round(item.keep_fraction * rows)), item.max_rows or rows)


def _check_shares(shares: Mapping[str, float], items: Sequence[MixItem], offered: Mapping[str, int]) -> None:
    whole = sum(shares.values())
    all_have = len(shares) == len(items)
    if all_have and abs(whole - 1) > 1e-6:
        raise UserError(f"every source of the mix has a `share`, and they sum to {whole:g}; expected 1")
    if not all_have and whole >= 1:
        raise UserError(f"the shares of {', '.join(shares)} sum to {whole:g}, which leaves nothing for the others")
    empty = [name for name in shares if not offered[name]]
    if empty or not (all_have or any(count for name, count in offered.items() if name not in shares)):
        which = f"{', '.join(empty)} of the mix" if empty else "the sources without a `share`"
        raise UserError(f"no rows are left of {which}, so the shares {dict(shares)} cannot be met")


def _id(place: Place, ids_by_name: Mapping[str, Sequence[str]]) -> str:
    return repeated_id(ids_by_name[place.name][place.place], place.repeat)
