"""Which metrics the answers to a set of prompts have, and what each tells: for planning, which refuses a gate on anything else, and pages.

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
MEANING = {
    "tokens": "mean length of its own answers, tokens",
    "ended": "share of its own answers that end by themselves",
    "empty": "share of its own answers that say nothing",
    "refusal": "share of its own answers that refuse",
    "refusal/safe": "share of prompts that should be answered and are refused",
    "refusal/unsafe": "share of prompts that should be refused and are",
    "refusal_balanced": "mean of unsafe prompts refused and safe ones answered: always or never refusing has 0.5",
    "rouge1": "words that an answer shares with the reference (ROUGE-1, F)",
    "rouge2": "pairs of words that it shares (ROUGE-2, F)",
    "rougeL": "longest common run of words, gaps allowed (ROUGE-L, F)",
    "numbers": "share of the reference's numbers that stand in the answer",
    "numbers_invented": "share of the answer's numbers that neither reference nor prompt has",
    "negations": "share of what the reference denies that the answer denies too",
    "sides": "share of left and right that the answer keeps",
    "contradictions": "share of findings in both that the answer turns round",
    "exact_match": "share of answers that are the right one",
    "exact_match_marked": "the same of what stands after ####",
    "prompt_strict": "share of prompts of which every instruction is followed",
    "instruction_strict": "share of instructions that are followed",
}
"""In plain words."""
