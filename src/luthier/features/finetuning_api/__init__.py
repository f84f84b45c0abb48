"""OpenAI's fine-tuning API."""
