"""Fixtures of this surface, shared by all features."""

from tests.fixtures.openai import home  # noqa: F401
