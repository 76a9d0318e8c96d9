"""Images of searches and evaluations. The home of matplotlib."""
