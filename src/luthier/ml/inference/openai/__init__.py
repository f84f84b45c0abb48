"""Clients for servers with OpenAI's API."""
