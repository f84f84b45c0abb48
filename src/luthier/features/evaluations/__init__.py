"""Evaluation of models on held-out rows, with intervals and a verdict."""
