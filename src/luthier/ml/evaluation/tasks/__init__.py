"""Kinds of tasks: how rows are read, what is asked of a model, and what is counted of its answers."""
