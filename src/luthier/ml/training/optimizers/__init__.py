"""Optimizers: their declarations, update rules and how they are loaded."""
