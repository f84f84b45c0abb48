"""Evaluation: metrics with intervals, systems side by side on the same held-out rows, and the verdict as text."""
