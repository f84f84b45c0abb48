"""A home that knows the tiny model."""

from tests.fixtures.openai import home  # noqa: F401
