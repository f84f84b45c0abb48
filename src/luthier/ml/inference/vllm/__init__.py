"""vLLM in its own process."""
