"""Tails on stored features: trainer, probe, receipt, refit, the whole model."""
