"""Placeholder, its owner writes this sentence."""
