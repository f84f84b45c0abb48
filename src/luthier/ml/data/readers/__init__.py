"""One reader a kind of document: each takes a path and returns the text in sections, with what it left out."""
