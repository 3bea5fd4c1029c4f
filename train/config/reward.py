"""What a recipe says of a reward model that the run trains itself, on its own pairs, and of judges in general."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rounds.data_prep.schema import Between, FieldError, Filters, Later, Mix
from rounds.train.config.judging import Judge, RewardModel, Share
from rounds.train.config.training import Training


class Trained(Training):
    """A reward model that this run trains with TRL's RewardTrainer: a head of one label on a policy's weights, which learns to score the
    chosen answer of a pair above the rejected one (Bradley and Terry 1952)."""

    kind: Literal["trained"]
    data: Mix
    """Sources of pairs under `sources`, each a name or {name, max_rows, keep_fraction, epochs, share}."""
    filters: Filters | None = None
    """Filters for this set in place of the recipe's own."""
    policy: Literal["base", "sft"] = "sft"
    """Whose weights it starts from."""
    center_rewards_coefficient: Annotated[
        Annotated[float, Between(1e-6, 100, "above, nothing but a mean of 0 is learnt")] | None, Later(None)
    ] = None
    """Weight of the square of a pair's summed scores, added to the loss, which keeps scores near 0 (arXiv 2312.09244, eq. 2); 0.01 is
    usual. None adds nothing."""
    max_missing_share: Share = 0.0
    """Above this share of answers without a score a stage that asks it stops and says why."""

    @property
    def as_reward_model(self) -> RewardModel:
        """The same to whoever asks it: a reward model like any other, in the folder `model` of the stage that trained it."""
        return RewardModel(kind="reward_model", path="model", max_length=self.max_length, max_missing_share=self.max_missing_share)

    @model_validator(mode="after")
    def _means_something(self) -> "Trained":
        reasons = {
            "lora": "all weights of a reward model are trained, and its folder is opened as any other's: take `lora` out",
            "router_aux_loss_coef": "TRL's RewardTrainer adds no loss that balances experts: take it out",
            "per_device_train_batch_size": "the loss is a mean over pairs, whatever the micro-batch: set micro_batch_size in the cluster",
        }
        for name, reason in reasons.items():
            if getattr(self, name) is not None:
                raise FieldError(reason, name)
        return self


RecipeJudge = Annotated[Judge | Trained, Field(discriminator="kind")]
"""A judge as a recipe gives it: one that is there, or one that the run trains. Ranking and comparing see the latter as a reward model."""
