"""What a recipe says of a round that trains on the policy's own answers: which prompts, and how they are answered."""

from typing import Annotated

from rounds.data_prep.schema import Between, Name
from rounds.train.config.decoding import Decoding

SAMPLED = "sampled"
"""In a round's `data`: the pairs that are made of what its policy answers."""


class Sampling(Decoding):
    """Prompts that the policy answers where a round starts, several times each."""

    prompts: Name
    """A name under `prompts` in the recipe."""
    part: Annotated[int, Between(1, 1000, "a set of prompts has no more parts")] = 1
    """Which of that set's `parts` to answer. No two rounds may have the same: what was trained on is not asked again."""
    num_answers: Annotated[int, Between(2, 1000, "a pair is made of two answers at least, and each is written token by token")] = 5
    """Answers to each prompt."""
    temperature: Annotated[float, Between(1e-3, 10, "greedy answers are all the same, and far above 1 all tokens are alike")] = 1.0
    """Of the softmax that tokens are drawn from."""
    max_new_tokens: Annotated[int, Between(1, 1_000_000, "an answer has a token, and no model writes more")] = 512
    """Longest answer, in tokens; with its prompt it must fit the round's `max_length`."""
    system_prompt: str | None = None
    """A file whose text is said first where a prompt says nothing first, here and in the pairs that are made."""
