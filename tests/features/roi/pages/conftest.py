"""Fixtures of this surface, shared by all features."""

from tests.fixtures.pages import browser, home, patient  # noqa: F401
