"""The tiny model as GGUF, made once a session; and a writer that needs only a format and a precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.ports import SilentProgress
from luthier.core.records.export import ExportFormat, ExportPrecision, ExportSource
from luthier.ml.export.exporters import registry

MakeSource = Callable[..., ExportSource]
Write = Callable[[ExportFormat, ExportPrecision, ExportSource], tuple[Path, list[str]]]


@pytest.fixture(scope="session")
def base_gguf(tools: Path, make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as GGUF in float32; never written to."""
    return _gguf(make_source(adapter_path=None), tmp_path_factory.mktemp("base-gguf"), tools)


@pytest.fixture(scope="session")
def merged_gguf(tools: Path, make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its adapter merged, as GGUF in float32; never written to."""
    return _gguf(make_source(), tmp_path_factory.mktemp("merged-gguf"), tools)


def _gguf(source: ExportSource, parent: Path, tools: Path) -> Path:
    target = parent / "export"
    target.mkdir()
    assert registry.write("gguf", source, target, "float32", SilentProgress(), tools) == []
    assert [path.name for path in parent.iterdir()] == ["export"]  # nothing is left of the way there
    return target


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an export into a folder of its own; returns the folder and the warnings. No tools are at hand."""

    def do(to: ExportFormat, precision: ExportPrecision, source: ExportSource) -> tuple[Path, list[str]]:
        target = tmp_path / f"{to}-{precision}"
        target.mkdir()
        return target, registry.write(to, source, target, precision, SilentProgress(), tmp_path / "no-tools")

    return do
