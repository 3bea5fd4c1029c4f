"""Which stages a recipe means, in which order, and what is refused before any of them runs."""
