"""OpenAI's routes that answer with models."""
