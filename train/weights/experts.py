"""Mixtures of experts: the loss that keeps their routers balanced, and whether it can be trained here.

TRL adds it in SFT and in DPO: the share of tokens that each expert gets times the router's mean probability of it (Fedus et al. 2021,
eq. 4), weighted by the config's `router_aux_loss_coef` unless the recipe says another.
"""

import logging
from typing import Any

from rounds.data_prep.errors import UserError

logger = logging.getLogger(__name__)


def coefficient(config: Any, wanted: float | None) -> float:
    """Return the weight of the balancing loss: the recipe's, else the model's own; 0 where the model has none, or cannot have it.

    Raises `UserError` where the recipe asks for one that cannot be had.
    """
    text = config.get_text_config()
    has = hasattr(text, "output_router_logits")
    if not has or obstacle(config):
        if wanted:
            reason = obstacle(config) or "it is no mixture of experts that returns its router's logits"
            raise UserError(
                f"router_aux_loss_coef: {wanted}, but {text.model_type} has no balancing loss here: {reason}. Take the line out"
            )
        if getattr(text, "router_aux_loss_coef", 0):
            logger.warning("trained without the balancing loss of its router: %s", obstacle(config) or "it does not return its logits")
        return 0.0
    own = getattr(text, "router_aux_loss_coef", 0.0)
    return float((own if wanted is None else wanted) or 0.0)


def obstacle(config: Any) -> str | None:
    """Say why a model that has a balancing loss by its config cannot be trained with it; None where it can, or has none."""
    text = config.get_text_config()
    if not hasattr(text, "output_router_logits"):
        return None
    count, chosen = getattr(text, "num_experts", None), getattr(text, "num_experts_per_tok", None)
    if not isinstance(count, int) or not isinstance(chosen, int):
        return "its config has no num_experts and num_experts_per_tok by which TRL computes it"
    return "it has a single expert" if count < 2 else None
