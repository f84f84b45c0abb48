"""A folder that is written again is another adapter, and nothing else is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from luthier.ml.inference.adapter_names import AdapterNames


def write(folder: Path, content: bytes, time_ns: int) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes(content)
        os.utime(folder / name, ns=(time_ns, time_ns))


def test_a_folder_that_was_written_again_has_another_name(tmp_path: Path) -> None:
    names, folder, other = AdapterNames(), tmp_path / "one", tmp_path / "two"
    for place in (folder, other):
        write(place, b"a", 1_000)
    for place in (folder, other, folder):
        assert names.of(str(place)) == str(place)
    write(folder, b"b", 2_000)
    assert [names.of(str(folder)), names.of(str(folder))] == [f"{folder}#2"] * 2
    write(folder, b"longer", 2_000)
    assert names.of(str(folder)) == f"{folder}#3"
    assert names.of(str(other)) == str(other)


def test_a_folder_that_is_gone_keeps_its_name(tmp_path: Path) -> None:
    names, folder = AdapterNames(), tmp_path / "one"
    write(folder, b"a", 1_000)
    assert names.of(str(folder)) == str(folder)
    shutil.rmtree(folder)
    assert names.of(str(folder)) == str(folder)
    write(folder, b"a", 1_000)
    assert names.of(str(folder)) == str(folder)
    write(folder, b"a", 3_000)
    assert names.of(str(folder)) == f"{folder}#2"


def test_a_file_keeps_its_name(tmp_path: Path) -> None:
    names, file = AdapterNames(), tmp_path / "adapter.gguf"
    for content in (b"a", b"other"):
        file.write_bytes(content)
        assert names.of(str(file)) == str(file)
