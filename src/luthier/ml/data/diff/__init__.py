"""What changed between two versions of a dataset: rows, fields, figures, and the sides of a split."""
