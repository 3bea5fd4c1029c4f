"""Arithmetic and time of training and scoring. All formulas of the planner's time are here.

A product of a weight and a token is 2 floating-point operations forward, 2 for the gradient of its input and 2 for its own
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1); attention is 4 x keys x width per layer and token forward, twice that
backward. Time is arithmetic / (devices x peak x utilisation), with the utilisation of train/config/gpus.py: loading, checkpoints
and the interconnect are not in it, so a slow network or a cold file system comes on top.
"""

from dataclasses import dataclass

from rounds.train.config.gpus import Gpu
from rounds.train.forecast.model_shape import Shape

PADDING = 1.4
"""Tokens computed per token of a pair where pairs are padded to the longest of a micro-batch: what two lengths of a lognormal
spread of 0.8, as UltraFeedback's answers have about, cost when both are made as long as the longer."""


DPO_SHARE = 0.7
"""Utilisation of a DPO step as a share of SFT's, which has fewer and longer rows: open-instruct reports 22.5 % for its packed
DPO (PR 1467) and 29-37 % for its packed SFT of the same model."""


@dataclass(frozen=True)
class Work:
    """What one token costs: `span` keys that attention computes for it on average, and how it is trained."""

    span: float
    activation_checkpointing: bool = False
    frozen: bool = False
    """The weights get no gradient of their own: LoRA."""
    forward_only: bool = False


def flops_per_token(shape: Shape, work: Work) -> float:
    """Return the floating-point operations of one token, everything that is computed twice counted twice."""
    linear = 2 * shape.linear_parameters
    attention = 4 * work.span * shape.heads * shape.head_width * shape.layers
    head = 2 * shape.vocabulary * shape.hidden
    if work.forward_only:
        return linear + attention + head
    backward = 1 if work.frozen else 2
    again = 1 if work.activation_checkpointing else 0
    # TRL's fused head computes the logits again in its backward pass.
    return linear * (1 + backward + again) + attention * (3 + again) + head * (2 + backward)


def span(longest: float, mean: float, skips_masked: bool) -> float:
    """Return the keys that attention computes per token: of its own conversation before it, or where a dense mask is used,
    of the whole row, whatever the mask hides."""
    return mean / 2 if skips_masked else longest


def seconds(flops: float, gpu: Gpu, devices: int, precision: str) -> float:
    """Return how long this much arithmetic takes."""
    peak = gpu.bf16 if precision == "bf16" else gpu.fp32
    return flops / (devices * peak * 1e12 * gpu.utilisation)


LAYER_SECONDS = 1e-3
"""Time that a layer takes on a GPU for one more token of each sequence, however few: starting its kernels from Python. A rule of thumb
of ours for transformers' `generate`."""


def writing_seconds(shape: Shape, gpu: Gpu, answers: int, tokens: int, batch: int, width: int) -> float:
    """Return how long answers take that are written token by token: each step reads all weights and starts all kernels."""
    steps = -(-answers // batch) * tokens
    return steps * (width * shape.parameters / (gpu.bandwidth * 1e12) + shape.layers * LAYER_SECONDS)


def pair_tokens(prompt: float, answer: float, batching: str) -> float:
    """Return the tokens that are computed for one pair, by the row's `pair_batching`."""
    if batching in ("shared_prefix", "auto"):
        return prompt + 2 * answer
    return 2 * (prompt + answer) * (1 if batching == "packed" else PADDING)
