"""Search: which recipe is best on these rows, within one budget."""
