"""A first tuned model with a verdict in a few minutes."""
