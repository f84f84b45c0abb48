"""Metrics: statistics per sample, and a formula over their sums."""
