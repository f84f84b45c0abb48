"""Datasets in versions: audited, repaired, split, annotated, compared."""
