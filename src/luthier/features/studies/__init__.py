"""Searches for the best recipe within a budget."""
