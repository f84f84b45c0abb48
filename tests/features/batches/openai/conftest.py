"""Fixtures of this surface, shared by all features."""

from tests.fixtures.openai import client_of, home  # noqa: F401
