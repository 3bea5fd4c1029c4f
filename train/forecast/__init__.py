"""What a run will need before it runs: memory, hours, tokens and disk. The formulas are in README.md."""
