"""Fixtures of this surface, shared by all features."""

from tests.fixtures.api import home, visitor  # noqa: F401
from tests.fixtures.native import run_id  # noqa: F401
