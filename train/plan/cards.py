"""What is known of a recipe's judges: a card of each that scores answers by weights, on the pairs that the recipe holds out.

A judge that the run trains is trained also where nobody asks it yet.
"""

from collections.abc import Mapping

from rounds.train.config.judging import RewardModel
from rounds.train.engine import kinds, params
from rounds.train.engine.graph import Asset, Stage
from rounds.train.plan import judges, rows
from rounds.train.plan.rows import Planning


def of_judges(planning: Planning, policies: Mapping[str, Stage]) -> list[Stage]:
    """Plan the cards; where no pairs are held out, the judges alone that the run trains. `policies` are the run's, by name."""
    held_out = planning.recipe.evaluate.preferences if planning.recipe.evaluate else ()
    found: list[Stage] = []
    for name in planning.recipe.judges:
        judge = judges.section(planning, name, "judges")
        if not isinstance(judge, RewardModel):
            continue
        inputs: dict[str, Stage | Asset] = judges.inputs(planning, name, policies)
        if not held_out:
            found += [each for each in inputs.values() if isinstance(each, Stage)]
            continue
        for source in held_out:
            inputs[f"preferences.{source}"] = rows.held_out_source(planning, source, "evaluate.preferences", "pair")
        found.append(Stage(f"card.{name}", kinds.CARD, params.CardParams(name=name, judge=judge), inputs))
    return found
