"""Safety probes: rows, a way of asking, and metrics, one kind of harm a file."""
