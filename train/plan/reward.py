"""The stages of a judge that the run trains itself: its pairs, their tokens, and the reward model.

    source.*  ->  data.reward.NAME  ->  tokenize.reward.NAME  ->  reward.NAME

What ranks answers, or compares policies, has `reward.NAME` as its input `judge`, and asks it as `Trained.as_reward_model`:
`judges.inputs` and `judges.section` give both.
"""

from collections.abc import Mapping

from rounds.data_prep.errors import UserError
from rounds.train.config.reward import Trained
from rounds.train.config.training import Training
from rounds.train.engine import kinds, params
from rounds.train.engine.graph import Stage
from rounds.train.plan import checks, model_config, rows
from rounds.train.plan.rows import Planning


def reward_of(planning: Planning, name: str, judge: Trained, policies: Mapping[str, Stage]) -> Stage:
    """Plan the training of a judge; `policies` are those of the run by name, `base` among them. Raises `UserError` for what cannot be."""
    where = f"judges.{name}"
    if judge.policy not in policies:
        raise UserError(
            f"{where}.policy: it is to start from {judge.policy!r}, and the recipe has no section of that name: set `policy: base`, or add "
            f"`{judge.policy}`"
        )
    checks.fits_model(model_config.limits(planning.recipe.base), judge, where)
    data = rows.data(planning, f"reward.{name}", judge.data, judge.filters, "pair", f"{where}.data")
    reading = params.TokenizeParams(max_length=judge.max_length, whole=True)
    pairs = Stage(f"tokenize.reward.{name}", kinds.TOKENIZE, reading, {"tokenizer": policies["base"], "data": data})
    asked = params.RewardParams(
        training=Training.model_validate({field: getattr(judge, field) for field in Training.model_fields}),
        center_rewards_coefficient=judge.center_rewards_coefficient,
        seed=planning.recipe.seed,
    )
    return Stage(f"reward.{name}", kinds.REWARD, asked, {"policy": policies[judge.policy], "pairs": pairs})
