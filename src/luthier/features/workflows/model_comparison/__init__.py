"""Several base models compared on the same rows."""
