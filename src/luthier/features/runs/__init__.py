"""Runs as one looks at them: lists, curves, control, new runs."""
