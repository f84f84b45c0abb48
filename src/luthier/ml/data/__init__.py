"""Data: files become rows, rows become examples, examples become token ids with a proved loss mask."""
