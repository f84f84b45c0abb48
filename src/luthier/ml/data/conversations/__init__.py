"""Conversations between people, as mail programs, help desks and chat programs export them, as chat rows."""
