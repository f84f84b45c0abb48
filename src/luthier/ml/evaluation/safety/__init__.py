"""Safety probes: rows, prompts and metrics, one file per kind of harm."""
