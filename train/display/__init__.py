"""What the terminal shows: plans, progress, scores, rows, forecasts."""
