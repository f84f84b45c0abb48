"""Environments for child processes of tests."""

from __future__ import annotations

import os


def without_coverage() -> dict[str, str]:
    """This process's variables, so that `make coverage` does not follow the child.

    For children in which coverage itself would change what the test asserts: where no file can be written, or where it
    matters whether a profiler is active at the end.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
