"""Finds what names or reaches a person in a text: one kind of value a file, `find.py` puts them together."""
