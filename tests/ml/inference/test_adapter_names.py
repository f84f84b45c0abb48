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


def test_a_file_that_was_written_again_has_another_name(tmp_path: Path) -> None:
    names, file = AdapterNames(), tmp_path / "adapter.gguf"
    for content, name in ((b"a", str(file)), (b"other", f"{file}#2")):
        file.write_bytes(content)
        assert [names.of(str(file)), names.of(str(file))] == [name, name]
    file.unlink()
    assert names.of(str(file)) == f"{file}#2"


def test_so_has_a_folder_whose_gguf_file_was_written_again(tmp_path: Path) -> None:
    names, folder = AdapterNames(), tmp_path / "one"
    write(folder, b"a", 1_000)
    (folder / "adapter.gguf").write_bytes(b"a")
    assert names.of(str(folder)) == str(folder)
    (folder / "adapter.gguf").write_bytes(b"other")
    assert names.of(str(folder)) == f"{folder}#2"
