"""The study: what trials draw, the worker that trains them, what it cost. The home of Optuna."""
