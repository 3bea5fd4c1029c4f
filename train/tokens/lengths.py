"""Lengths in tokens, by source: what `pack` and `tokenize` count, for the manifest, the report and `rounds data stats`."""

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError

EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

_ADVICE = {
    "longer_than_max_length": "Raise max_length, or look at the rows",
    "prompt_too_long": "Raise max_length, or look at the rows",
    "template_prompt_is_no_prefix": "The chat template writes what comes before an answer otherwise once it is answered: set "
    "base.chat_template to one that does not, or look at the rows",
    "template_loses_content": "The chat template leaves out a part of what is said, such as a system turn or a think block: set "
    "base.chat_template to one that writes it, or look at the rows",
    "template_refuses_conversation": "The chat template refuses such conversations, as some do with a system turn: set base.chat_template "
    "to one that takes them, or look at the rows",
    "answer_without_end_token": "The chat template ends these answers without a control token: set base.chat_template to another, or look "
    "at the rows",
}


@dataclass
class Lengths:
    """Rows, tokens and a histogram of the rows of one source, and what was dropped of it by reason."""

    rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    longest: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    histogram: Counter[str] = field(default_factory=Counter)

    def add(self, length: int, tokens: int, answer_tokens: int) -> None:
        """Count one row that is kept: its length as the model reads it, and its tokens, of a pair those of both sides."""
        self.rows += 1
        self.tokens += tokens
        self.answer_tokens += answer_tokens
        self.longest = max(self.longest, length)
        self.histogram[bucket(length)] += 1

    def counts(self) -> dict[str, Any]:
        """Return the counts as JSON, the histogram from short to long."""
        histogram = {name: self.histogram[name] for name in sorted(self.histogram, key=edge)}
        return {"rows": self.rows, "tokens": self.tokens, "answer_tokens": self.answer_tokens, "longest": self.longest,
                "dropped": dict(self.dropped), "histogram": histogram}  # fmt: skip


def bucket(length: int) -> str:
    """Name the bucket of a length: `<=128`, or `<=more` above the last edge."""
    place = bisect_left(EDGES, length)
    return f"<={EDGES[place] if place < len(EDGES) else 'more'}"


def edge(name: str) -> float:
    """Return the upper edge of a bucket such as `<=128`; `<=more` has none."""
    digits = name.removeprefix("<=")
    return int(digits) if digits.isdigit() else math.inf


def none_left(what: str, max_length: int, dropped: Counter[str], log: Path) -> UserError:
    """Return the error of a set of which nothing can be trained on, with the reasons; `log` names the rows."""
    advice = "; ".join(text for reason, text in _ADVICE.items() if dropped[reason])
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.most_common())
    return UserError(
        f"no {what} is left to train on within max_length {max_length}; dropped: {reasons or 'none came in'}. "
        f"{advice or 'Look at the rows'}: {log} names them"
    )
