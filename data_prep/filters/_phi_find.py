"""What filter `phi` looks for and what it says of a find."""

from dataclasses import dataclass
from typing import Literal

PhiKind = Literal["record_number", "id_number", "account", "email", "phone", "address", "url", "ip", "age_over_89", "date", "name"]
KINDS: tuple[PhiKind, ...] = PhiKind.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Find:
    """Where in a text something of a kind was found, end excluded, and how sure that is."""

    start: int
    end: int
    kind: PhiKind
    score: float
