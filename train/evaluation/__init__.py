"""How a policy is measured: lm-eval, one row per item, paired differences."""
