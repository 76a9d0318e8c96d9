"""Images drawn from formulas and seeds."""
