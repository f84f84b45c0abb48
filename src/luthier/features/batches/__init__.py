"""OpenAI's Batch API: files of requests that are answered beside live traffic."""
