"""Pictures drawn from formulas and seeds."""
