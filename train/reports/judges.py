"""The report's part on judges: how often each is right where the better answer is known, and what it is blind to."""

from collections.abc import Iterable
from dataclasses import dataclass

from rounds.train.judging import card
from rounds.train.judging.card import Card
from rounds.train.reports.steps import Finished


@dataclass(frozen=True)
class Known:
    """A judge's card, and how the judge came to be."""

    card: Card
    trained: Finished | None
    """The stage that trained it, where the run did."""


def cards(stages: Iterable[Finished]) -> list[Known]:
    """Read the cards of a run's judges, in the order of their names."""
    every = list(stages)
    by_folder = {stage.folder.name: stage for stage in every}
    vetted = sorted((stage for stage in every if stage.kind.vets and not stage.skipped), key=lambda each: each.name)
    return [Known(card.read(stage.folder), by_folder.get(stage.input("judge") or "")) for stage in vetted]
