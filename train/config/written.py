"""Which metrics the answers to a set of prompts have: for planning, which refuses a gate on anything else.

In: the kind of the set's records. Out: names, as `rounds.train.evaluation.written` gives them. A prompt may know little of a right answer,
so a set of prompts has some of its metrics only.
"""

from rounds.data_prep.records import Kind

ALWAYS = ("tokens", "ended", "empty", "refusal")
REFERENCED = ("rouge1", "rouge2", "rougeL", "numbers", "numbers_invented", "negations", "sides", "contradictions")
METRICS: dict[Kind, tuple[str, ...]] = {
    "conversation": (*ALWAYS, "refusal_balanced", *REFERENCED),
    "pair": (*ALWAYS, "refusal_balanced", *REFERENCED),
    "question": (*ALWAYS, "refusal_balanced", "exact_match"),
    "prompt": (*ALWAYS, "refusal_balanced", "exact_match", "exact_match_marked", "prompt_strict", "instruction_strict"),
}
LOWER_IS_BETTER = {"empty", "numbers_invented", "contradictions", "refusal/safe"}
"""Of these; of all others more is better, or neither direction is."""
