"""Fixtures of this surface, shared by all features."""

from tests.fixtures.service import context, deployed, make_recipe, trained  # noqa: F401
