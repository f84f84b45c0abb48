"""Exports of models to other runtimes: merge, quantise, convert, check against the source, and bundle."""
