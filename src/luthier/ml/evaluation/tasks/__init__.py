"""Kinds of tasks: how rows are read, what a model is asked, and what is counted in its answers."""
