"""Metrics, one file each: statistics a sample, and a formula over their sums."""
