"""Plug-ins of installed packages, by the group that they are for."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.plug_ins import installed_package

from luthier.core import registry

POINTS = """\
[luthier.metrics]
ours = theirs:metric
[luthier.methods]
ours = theirs:method
[console_scripts]
ours = theirs:main
"""


def test_what_is_installed_is_read_once_for_all_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, read = metadata.entry_points, list[dict[str, Any]]()

    def entry_points(**given: Any) -> Any:
        read.append(given)
        return real(**given)

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    with installed_package(tmp_path, monkeypatch, POINTS, ""):
        for _ in range(2):
            found = {
                group: [entry.value for entry in registry.entry_points(f"luthier.{group}") if entry.name == "ours"]
                for group in ("metrics", "methods", "checks")
            }
            assert found == {"metrics": ["theirs:metric"], "methods": ["theirs:method"], "checks": []}
    assert len(read) == 1
