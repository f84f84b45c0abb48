"""ExecuTorch: a tiny model lowered to XNNPACK, and proved in its runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.ml.export.conftest import MakeSource

from luthier.core.dataset import Example
from luthier.core.errors import ModelSourceError, NotFoundError, RequestError
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters.executorch import FILE, write
from luthier.ml.export.parity import prove
from luthier.ml.export.runtimes.executorch_runtime import ExecutorchRuntime

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason="the package executorch is not installed (pip install luthier[executorch])",
)
# The package and what it brings use what is deprecated in others.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def export(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("executorch") / "export"
    folder.mkdir()
    assert write(make_source(), folder, "float32", SilentProgress(), folder) == []
    return folder


@needs_executorch
def test_it_is_proved_equal(export: Path, make_source: MakeSource, examples: list[Example]) -> None:
    report = prove(make_source(), export, "executorch", "float32", examples, SilentProgress())
    assert report.passed, report.reasons
    assert report.runtime == "executorch"
    assert report.num_prompts_same_tokens == report.num_texts_equal == len(examples)
    assert report.max_difference_nats < 1e-3


@needs_executorch
def test_tokenizer_and_template_travel_along(export: Path, tiny_model: Path) -> None:
    assert [path.name for path in export.parent.iterdir()] == ["export"]
    assert (export / FILE).stat().st_size > 10_000
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (export / name).read_bytes() == (tiny_model / name).read_bytes()


@needs_executorch
def test_a_damaged_program_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no program")
    with pytest.raises(ModelSourceError, match="ExecuTorch cannot load"):
        ExecutorchRuntime(tmp_path)


def test_a_folder_without_a_program_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no model\.pte"):
        ExecutorchRuntime(tmp_path)


def test_without_the_package_it_says_how_to_get_it(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"luthier\[executorch\]"):
        write(make_source(), tmp_path, "float32", SilentProgress(), tmp_path)
