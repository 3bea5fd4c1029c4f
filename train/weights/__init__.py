"""Models in memory: loading, adapters, log-probabilities, attention over packed rows."""
