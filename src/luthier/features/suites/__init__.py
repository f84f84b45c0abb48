"""Suites of tasks, and the safety check."""
