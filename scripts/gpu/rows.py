"""Random models and rows of the shapes that count: what the bench scripts and check_gpu compute on, with no model from anywhere.

In: a kind, a count, a vocabulary. Out: token rows, the same for the same seed on any machine.
"""

import math
import random
from typing import Any

Rows = list[dict[str, Any]]
SHAPES: dict[str, dict[str, Any]] = {
    "5M": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
           "intermediate_size": 704, "vocab_size": 2048},
    "14M": {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2,
            "intermediate_size": 1024, "vocab_size": 4096},
    "135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
             "intermediate_size": 1536, "vocab_size": 49152},
    "1B": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 8192, "vocab_size": 128256},
    "8B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
"""Of SmolLM2-135M, Llama-3.2-1B and Llama-3-8B, and two smaller ones."""
IN_SMALL: dict[str, dict[str, Any]] = {
    name: {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
           "intermediate_size": 3 * width, "vocab_size": 512,
           "tie_word_embeddings": SHAPES[name].get("tie_word_embeddings", True)}
    for name, width, layers in (("14M", 64, 2), ("135M", 64, 4), ("1B", 96, 2), ("8B", 96, 3))
}  # fmt: skip
"""What stands for each shape on a CPU, where only the way is tried: as deep or as wide for its size, and thousands of times less."""
LENGTHS = {"clinical": (400, 0.6, 60, 0.7), "ultrafeedback": (130, 0.8, 270, 0.6)}
"""Mean length and spread (sigma of its logarithm) of prompts and of answers, in tokens."""
PROMPT, ANSWER = (60, 0.8), (90, 1.1)
"""The same of a conversation's question and answer."""


def config(shape: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the config of a Llama of this shape, as its config.json would say it."""
    return {"model_type": "llama", "max_position_embeddings": 8192, "tie_word_embeddings": True, **shape, **changes}


def pairs(kind: str, count: int, vocabulary: int, shorten: int = 1) -> Rows:
    """Random pairs with lengths of this kind: log-normal, between 4 and 2000 tokens, the two answers' lengths alike."""
    chance = random.Random(kind)
    prompt_mean, prompt_sigma, answer_mean, answer_sigma = LENGTHS[kind]

    def length(mean: float, sigma: float, shared: float) -> int:
        bell = 0.7 * shared + math.sqrt(1 - 0.7**2) * chance.gauss(0, 1)
        return max(4, min(2000, round(mean * math.exp(sigma * bell - sigma**2 / 2))) // shorten)

    # The reference says what a model of random weights says of any token, so rewards start near 0 as in a real round. A constant
    # would saturate the loss: gradients become denormal numbers, which slow a CPU down, and the padded way less than ours.
    each = -math.log(vocabulary)
    rows = []
    for _ in range(count):
        shared = chance.gauss(0, 1)
        prompt = _ids(chance, length(prompt_mean, prompt_sigma, chance.gauss(0, 1)), vocabulary)
        chosen, rejected = (_ids(chance, length(answer_mean, answer_sigma, shared), vocabulary) for _ in range(2))
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected,
                     "ref_chosen_logps": each * len(chosen), "ref_rejected_logps": each * len(rejected)})  # fmt: skip
    return rows


def conversations(count: int, longest: int, vocabulary: int, shorten: int = 1) -> Rows:
    """Random conversations: the prompt is not learnt, the answer is."""
    chance = random.Random(0)

    def ids(mean: float, sigma: float) -> list[int]:
        length = mean * math.exp(chance.gauss(0, sigma) - sigma**2 / 2) / shorten
        return _ids(chance, max(4, min(longest // 2, round(length))), vocabulary)

    rows = []
    for _ in range(count):
        prompt, answer = ids(*PROMPT), ids(*ANSWER)
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def _ids(chance: random.Random, count: int, vocabulary: int) -> list[int]:
    return [chance.randrange(3, vocabulary) for _ in range(count)]


def learnt(rows: Rows) -> int:
    """Count answer tokens."""
    return sum(n != -100 for row in rows for n in row["labels"])


def tokens_of_pairs(rows: Rows) -> int:
    """Count the tokens of both sides: what a padded batch without padding would have."""
    return sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
