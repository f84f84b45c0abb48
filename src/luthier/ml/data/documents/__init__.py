"""Documents found, read and cut into chunks."""
