"""The server's HTTP side: OpenAI's wire format under /v1, our own additions under /api/v1."""
