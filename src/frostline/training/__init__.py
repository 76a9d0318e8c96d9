"""Tails on stored features: trainer, linear heads, receipt, refit, the whole model."""
