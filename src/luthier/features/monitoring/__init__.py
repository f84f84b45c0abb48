"""Deployed models watched: signals, alerts, scheduled suites."""
