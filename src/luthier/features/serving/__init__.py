"""Model serving: the engine process, its queue, and OpenAI's routes."""
