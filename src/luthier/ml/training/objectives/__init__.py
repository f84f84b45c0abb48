"""Training objectives: the losses that are minimised."""
