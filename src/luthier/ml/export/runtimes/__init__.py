"""Runtimes of exports: each format in its real runtime, behind one small interface."""
