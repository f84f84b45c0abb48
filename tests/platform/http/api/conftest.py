"""Fixtures of this surface, shared by all features."""

from tests.fixtures.api import home, visitor  # noqa: F401
