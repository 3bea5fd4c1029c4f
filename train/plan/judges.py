"""Judges as stages are asked for them: the recipe's section with the text of its rubric, and what each reads.

In: a judge's name under `judges`. Out: its section as params hold it, and the inputs of whatever stage asks it: `judge`, a folder with
weights of the user's own, a policy of the run, or the stage that trains it. What a judge may cost, and where it is, is beside its params
and in no key.
"""

from collections.abc import Mapping

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config.judging import Judge, Llm, Weights
from rounds.train.config.recipe import Recipe
from rounds.train.config.reward import RecipeJudge, Trained
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.policy import MODEL_FILES
from rounds.train.plan import reward
from rounds.train.plan.rows import Planning


def section(planning: Planning, name: str, where: str) -> Judge:
    """Return a judge with the text of its rubric in place of the file's name; one that the run trains is a reward model by then.

    Raises `UserError` for a name that is none's.
    """
    judge = named(planning.recipe, name, where)
    if isinstance(judge, Llm):
        return judge.model_copy(update={"rubric": planning.text(judge.rubric, f"judges.{name}.rubric")})
    return judge.as_reward_model if isinstance(judge, Trained) else judge


def named(recipe: Recipe, name: str, where: str) -> RecipeJudge:
    """Return a judge as the recipe says it. Raises `UserError` for a name that is none's."""
    if name not in recipe.judges:
        raise UserError(f"{where}: no judge is named {name!r} under `judges` in the recipe. {nearest(name, recipe.judges)}")
    return recipe.judges[name]


def inputs(planning: Planning, name: str, policies: Mapping[str, Stage]) -> dict[str, Stage | Asset]:
    """Return what a judge reads beside answers; `policies` are those of the run so far, by name. Raises `UserError` for one that is not
    there."""
    judge = planning.recipe.judges[name]
    if isinstance(judge, Trained):
        return {"judge": reward.reward_of(planning, name, judge, policies)}
    if isinstance(judge, Weights) and judge.path:
        return {"judge": planning.asset(judge.path, f"judges.{name}.path", MODEL_FILES)}
    if isinstance(judge, Llm) and judge.policy:
        if judge.policy not in policies:
            raise UserError(
                f"judges.{name}.policy: no policy is named {judge.policy!r} where this judge is asked. {nearest(judge.policy, policies)}"
            )
        return {"judge": policies[judge.policy]}
    return {}


def loads_weights(judge: Judge) -> bool:
    """Tell whether a judge is a model in memory here: not where it counts, or asks an endpoint."""
    return isinstance(judge, Weights) or (isinstance(judge, Llm) and judge.policy is not None)
