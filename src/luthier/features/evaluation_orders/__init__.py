"""Evaluations that the server is asked for, and the pages of results."""
