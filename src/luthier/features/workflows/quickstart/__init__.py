"""From nothing to a verdict in a few minutes."""
