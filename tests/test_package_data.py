"""What the package reads at run time is in the wheel: files that are no Python have a pattern in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "luthier"
# Not imported here: setuptools replaces distutils, which another test may have loaded.
needs_setuptools = pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools builds the wheel")


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
    assert {"ml/inference/models/catalog.yaml", "ml/planning/devices.yaml"} <= {
        str(path.relative_to(PACKAGE)) for path in there
    }


def wheel_of(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkout in which only what builds a wheel is left."""
    made = tmp_path / "source"
    (made / "src" / "luthier" / "platform" / "ui" / "vendor").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (made / name).write_bytes((ROOT / name).read_bytes())
    (made / "src" / "luthier" / "__init__.py").write_text("")
    for package in ("platform", "platform/ui"):
        (made / "src" / "luthier" / package / "__init__.py").write_text("")
    return made


@needs_setuptools
def test_a_wheel_without_built_assets_is_not_made(source: Path, tmp_path: Path) -> None:
    done = wheel_of(source, tmp_path)
    assert done.returncode != 0
    assert "echarts.js" in done.stdout + done.stderr
    assert "make wheel" in done.stdout + done.stderr
    assert list(tmp_path.glob("*.whl")) == []


@needs_setuptools
def test_a_wheel_carries_built_assets(source: Path, tmp_path: Path) -> None:
    for name in ("echarts.js", "htmx.js", "faces.css", "text-latin.woff2", "text-latin-ext.woff2", "LICENCES.txt"):
        (source / "src" / "luthier" / "platform" / "ui" / "vendor" / name).write_text("built")
    done = wheel_of(source, tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.whl")
    assert {"luthier/platform/ui/vendor/echarts.js", "luthier/platform/ui/vendor/htmx.js"} <= set(
        zipfile.ZipFile(made).namelist()
    )
