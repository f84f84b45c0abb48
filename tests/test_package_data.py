"""What the package reads at run time is in the wheel: files that are no Python have a pattern in pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "luthier"


def test_every_file_of_the_package_that_is_no_module_is_packaged() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = config["tool"]["setuptools"]["package-data"]["luthier"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    there = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert sorted(there - packaged) == []
    assert {"models/catalog.yaml", "plan/devices.yaml"} <= {str(path.relative_to(PACKAGE)) for path in there}
