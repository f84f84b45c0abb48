"""Rows of every shape: recognised, normalised, written."""
