"""Cheap ways to answer the same rows without a language model: what a tuned model has to beat."""
