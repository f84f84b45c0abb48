"""Comparison of several base models on the same rows."""
