"""Exports run as they will be used: each format in its real runtime, behind one narrow door."""
