"""Which rows became which models."""
