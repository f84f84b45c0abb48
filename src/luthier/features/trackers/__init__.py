"""Experiment trackers: runs are reported to them, and what could not be delivered is delivered later."""
