"""How a pair that is too long is cut: the prompt keeps its end, the answers a least number of tokens."""

from rounds.train.tokens import chat

_MIN_ANSWER_TOKENS = 32
"""Room that a prompt must leave for the answers; below that a cut pair says little about which answer is better."""


def fit(pair: chat.EncodedPair, max_length: int) -> chat.EncodedPair | str:
    """Bring a pair within `max_length` tokens a side, or say why it cannot be used."""
    if pair.chosen_ids == pair.rejected_ids:
        return "identical_sides"
    room = max_length - len(pair.prompt_ids)
    longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
    if room < min(longest, _MIN_ANSWER_TOKENS):
        return "prompt_too_long"
    fitted = chat.EncodedPair(pair.prompt_ids, pair.chosen_ids[:room], pair.rejected_ids[:room])
    return "identical_after_truncation" if fitted.chosen_ids == fitted.rejected_ids else fitted
