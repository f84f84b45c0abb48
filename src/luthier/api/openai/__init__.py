"""OpenAI's wire format, one file a noun."""
