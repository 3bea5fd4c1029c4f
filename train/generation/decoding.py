"""Which token comes next, so that an answer depends on nothing but its own seed.

In: the scores of a batch's next tokens, and the seed of each answer. Out: one token a row. Each token is drawn by the inverse of the
cumulative distribution at a uniform number that a hash makes of seed and position: neither the batch, nor its order, nor what was
drawn before in the process enters it. With torch's own generator 2 of 48 answers were the same in batches of 24 and of 5; so 48 in
fp32, 46 in bf16, whose scores themselves differ by batch (`tests/train/generation/test_decoding.py` has both).
"""

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from rounds.data_prep import records
from rounds.train.config.decoding import Decoding

_BITS = 53
"""Of a uniform number: as many as a double holds."""


def seed_of(seed: int, prompt_id: str, number: int) -> int:
    """Return the seed of one answer, by the recipe's seed, the prompt's id and the answer's number. It has 63 bits, as vLLM takes it."""
    return records.stable_hash("answer", seed, prompt_id, number) >> 1


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) for a token's position in an answer."""
    text = seed.to_bytes(8, "big") + position.to_bytes(8, "big")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> (64 - _BITS)) / (1 << _BITS)


def choose(scores: torch.Tensor, uniforms: Sequence[float], temperature: float, top_p: float) -> torch.Tensor:
    """Return a token for each row of scores (rows x vocabulary). Tokens are summed in the order of their ids, which no noise changes."""
    if temperature == 0:
        return scores.argmax(-1)
    probabilities = torch.softmax(scores.float() / temperature, -1)
    if top_p < 1:
        ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
        within = ordered.double().cumsum(-1) - ordered < top_p  # of the likeliest nothing comes before, so it always stays
        probabilities = probabilities * torch.zeros_like(probabilities).scatter(-1, places, within.float())
    sums = probabilities.double().cumsum(-1)
    total = sums[:, -1:]
    wanted = torch.tensor(uniforms, dtype=torch.float64, device=scores.device)[:, None] * total
    # "right": the first token whose sum is above, which passes over all that have no probability.
    found = torch.searchsorted(sums, wanted, right=True)
    return torch.minimum(found, (sums < total).sum(-1, keepdim=True))[:, 0]


class OneToken(LogitsProcessor):
    """Leaves one token of each row, so that `generate`, asked for the likeliest, takes that; notes its log-probability."""

    def __init__(self, seeds: Sequence[int], decoding: Decoding) -> None:
        self.seeds, self.decoding = seeds, decoding
        self.logprobs: list[torch.Tensor] = []
        """One tensor a step: in nats, of the distribution before temperature and top_p."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = len(self.logprobs)
        uniforms = [uniform(seed, position) for seed in self.seeds] if self.decoding.temperature else []
        tokens = choose(scores, uniforms, self.decoding.temperature, self.decoding.top_p)[:, None]
        self.logprobs.append(scores.float().gather(-1, tokens)[:, 0] - scores.float().logsumexp(-1))
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)
