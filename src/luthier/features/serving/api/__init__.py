"""OpenAI's inference routes."""
