"""Base models: sources, weights, structure and loading."""
