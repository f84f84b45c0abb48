"""Watching what was deployed: what changes, and when to tell."""
