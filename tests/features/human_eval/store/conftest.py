"""Fixtures of this surface, shared by all features."""

from tests.fixtures.store import database, plan, record, result, runs, set_clock  # noqa: F401
