"""One file a format: each writes the source into an empty folder."""
