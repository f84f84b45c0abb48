"""Evaluations requested from the server, and the pages of results."""
