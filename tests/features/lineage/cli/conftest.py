"""Fixtures of this surface, shared by all features."""

from tests.fixtures.cli import home, luthier, run  # noqa: F401
