"""Pre-trained networks: families, weights, cuts, and the frozen prefix run once."""
