"""Checks of a data file, one a file, and the grade that follows from what they find."""
