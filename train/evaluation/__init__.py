"""How a policy is measured: likelihood of choices, lm-eval, one row per item, paired differences."""
