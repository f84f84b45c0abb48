"""Webhooks, as routes and a page."""
