from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.files.untrusted_input import MAX_ENTRIES, check_archive


def make(path: Path, entries: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_plain_one(tmp_path: Path) -> None:
    entries: dict[str, str | bytes] = {
        "word/document.xml": "<a/>",
        "c.xhtml": "<!DOCTYPE html><html/>",
        "p.png": b"\0" * 10,
    }
    assert check_archive(make(tmp_path / "a.docx", entries)) == set(entries)


def test_a_bomb_by_ratio(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="decompression bomb"):
        check_archive(make(tmp_path / "a.docx", {"word/media.bin": bytes(11 * 2**20)}))


def test_a_bomb_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.ml.data.files.untrusted_input.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match="it unpacks to 1,200 bytes"):
        check_archive(make(tmp_path / "a.docx", {"a": b"x" * 600, "b": b"y" * 600}))


def test_a_directory_that_lies_about_sizes(tmp_path: Path) -> None:
    path = make(tmp_path / "a.docx", {"word/document.xml": b" " * 2**20})
    data = path.read_bytes()
    size = (2**20).to_bytes(4, "little")
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(DataError):
        check_archive(path)


def test_too_many_entries(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(MAX_ENTRIES + 1):
            archive.writestr(str(number), b"")
    with pytest.raises(DataError, match="20,001 entries"):
        check_archive(path)


@pytest.mark.parametrize(
    "name", ["../evil.xml", "/etc/passwd", "a/../../b", "..\\evil.xml", "C:\\evil.xml", "\\\\host\\x"]
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="points outside the folder") as caught:
        check_archive(make(tmp_path / "a.docx", {name: "x"}))
    assert repr(name) in caught.value.came


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_that_multiply(tmp_path: Path, encoding: str) -> None:
    laughs = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    with pytest.raises(DataError, match="entities"):
        check_archive(make(tmp_path / "a.docx", {"word/document.xml": laughs.encode(encoding)}))


def test_an_entity_over_the_edge_of_a_block(tmp_path: Path) -> None:
    data = b"<a>" + b"x" * (2**20 - 6) + b"<!ENTITY b 'c'>"
    with pytest.raises(DataError, match="entities"):
        check_archive(make(tmp_path / "a.docx", {"word/document.xml": data}))


@pytest.mark.parametrize("keep", [10, 60, -30])
def test_a_broken_one(tmp_path: Path, keep: int) -> None:
    path = make(tmp_path / "a.docx", {"word/document.xml": "<a>text</a>" * 20})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="broken"):
        check_archive(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_data(tmp_path: Path, compression: int) -> None:
    path = make(tmp_path / "a.docx", {"word/document.xml": bytes(range(256)) * 40}, compression)
    data = bytearray(path.read_bytes())
    data[60:100] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(DataError, match="broken"):
        check_archive(path)


def test_encrypted_entries(tmp_path: Path) -> None:
    path = make(tmp_path / "a.docx", {"a.xml": "text"})
    data = path.read_bytes()
    place = data.index(b"PK\x01\x02") + 8
    path.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    with pytest.raises(DataError, match="encrypted"):
        check_archive(path)
