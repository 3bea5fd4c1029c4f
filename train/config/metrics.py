"""Names of metrics and what they tell: which rank policies, which are parts or other forms of one, which neither direction is better of.

In: `subject/metric`, `subject/metric/group`, or the name of an average, as in `scores.json`. Out: answers, without any library.
"""

NEUTRAL = {"margin", "chosen_logp", "rejected_logp", "tokens", "ended", "refusal"}
"""Metrics of any subject that are measured to understand a policy, not to rank it: neither direction is better by itself. Nor is one of
what another metric has without skill (`notes/rouge1/floor_lead`)."""
REFUSALS = ("/refusal/safe", "/refusal/unsafe")
"""Metrics of prompts that should not be refused, or should: not groups of one metric, since their directions differ."""

WIN_RATES = ("winrate", "winrate_lc")
"""Metrics of a comparison of two policies' answers by a judge, raw and at equal length: each is a comparison already."""


def is_neutral(metric: str) -> bool:
    """Tell whether neither direction of a metric is better by itself."""
    _, _, rest = metric.partition("/")
    return rest in NEUTRAL or "/floor_" in rest


def is_other_form(metric: str) -> bool:
    """Tell whether a metric scores again, in another way, the items of one that is judged: `acc` divided by lengths, ROUGE of pairs of
    words. Judged too, one change would count three times."""
    return metric.partition("/")[2] in ("acc_norm", "acc_bytes", "rouge2", "rougeL", "exact_match_marked")


def is_breakdown(metric: str) -> bool:
    """Tell whether a metric is about a group of another's items (`facts/acc/dose`)."""
    return metric.count("/") > 1 and not metric.endswith(REFUSALS)


def is_main(metric: str) -> bool:
    """Tell whether a metric ranks policies: no breakdown by group or other form, and one direction is better. An average's has no `/`."""
    return not is_breakdown(metric) and not is_neutral(metric) and not is_other_form(metric)


def is_of_refusals(metric: str) -> bool:
    """Tell whether a metric counts refusals, which a rule on strings finds."""
    return metric.partition("/")[2].startswith("refusal")
