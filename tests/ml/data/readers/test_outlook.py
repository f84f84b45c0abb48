"""Outlook messages, written by the tests' own writer of compound files."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.compound_files import compound_file, message, properties, recipient, text_stream

from luthier.core.errors import DataError
from luthier.ml.data.files.compound_file import read_compound_file
from luthier.ml.data.readers import outlook

SENT = datetime(2026, 3, 1, 14, 30, tzinfo=UTC)


def _read(folder: Path, content: dict[str, Any]) -> Any:
    path = folder / "a.msg"
    path.write_bytes(compound_file(content))
    return outlook.read(path)


def _mail(**more: Any) -> dict[str, Any]:
    return message(
        SENT,
        **text_stream(0x0037, "Rückgabe \u2013 Frist"),
        **text_stream(0x0C1A, "Anna Öz"),
        **text_stream(0x5D01, "anna@example.org"),
        **{"__recip_version1.0_#00000000": recipient(1, "Bob, Jr.", "bob@example.org")},
        **{"__recip_version1.0_#00000001": recipient(2, "carl@example.org", "carl@example.org")},
        **more,
    )


def test_a_message_is_read_as_a_mail(tmp_path: Path) -> None:
    long = "Sie haben 30 Tage.\r\n\r\n" + "Mehr dazu. \U0001f600 " * 400
    attachment = {"__properties_version1.0": properties(8), **text_stream(0x3707, "Vertrag.pdf")}
    document = _read(tmp_path, _mail(**text_stream(0x1000, long), **{"__attach_version1.0_#00000000": attachment}))
    head, text = document.sections
    assert head.headings == text.headings == ("Rückgabe \u2013 Frist",)
    assert head.text.split("\n") == [
        "From: Anna Öz <anna@example.org>",
        'To: "Bob, Jr." <bob@example.org>',
        "Cc: carl@example.org",
        "Date: Sun, 01 Mar 2026 14:30:00 +0000",
    ]
    assert text.text.strip() == long.replace("\r\n", "\n").strip()
    assert document.warnings == ("1 attachment was not read: Vertrag.pdf",)


def test_text_of_a_code_page_and_html(tmp_path: Path) -> None:
    html = "<p>Добрый <b>день</b></p>".encode("cp1251")
    content = message(SENT, fixed={"page": (0x3FDE, 0x0003, 1251)}, **{"__substg1.0_10130102": html})
    assert [one.text for one in _read(tmp_path, content).sections][-1] == "Добрый **день**"
    content = message(
        SENT, fixed={"page": (0x3FFD, 0x0003, 1251)}, **{"__substg1.0_1000001E": "Добрый день".encode("cp1251")}
    )
    assert [one.text for one in _read(tmp_path, content).sections][-1].strip() == "Добрый день"


def test_packed_rich_text_is_read_where_there_is_nothing_else(tmp_path: Path) -> None:
    # The example of MS-OXRTFCP 3.1.1.
    packed = bytes.fromhex(
        "2d0000002b0000004c5a4675f1c5c7a703000a007263706731323542320af32068656c090020627705b06c647d0a800fa0"
    )
    assert outlook.unpacked_rtf(packed) == rb"{\rtf1\ansi\ansicpg1252\pard hello world}" + b"\r\n"
    document = _read(tmp_path, message(SENT, **{"__substg1.0_10090102": packed}))
    assert document.sections[-1].text.strip() == "hello world"
    plain = struct.pack("<II", 20, 8) + b"MELA" + bytes(4) + rb"{\rtf x}"
    assert outlook.unpacked_rtf(plain) == rb"{\rtf x}"
    with pytest.raises(DataError, match="RTF is damaged"):
        outlook.unpacked_rtf(b"short")


def test_a_message_without_text_or_properties_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a mail without text"):
        _read(tmp_path, _mail())
    with pytest.raises(DataError, match="no properties of a message"):
        _read(tmp_path, {"Workbook": b"x"})


def test_streams_of_all_sizes_come_back(tmp_path: Path) -> None:
    sizes = (0, 1, 63, 64, 65, 4095, 4096, 4097, 70_000)
    content = {f"s{size}": bytes(at % 251 for at in range(size)) for size in sizes}
    path = tmp_path / "a.bin"
    path.write_bytes(compound_file({**content, "inner": {"deep": {"x": b"y" * 5000}}}))
    root = read_compound_file(path)
    assert {name: root.read(name) for name in root.streams} == content
    assert root.read("S64") == content["s64"]
    assert root.read("none") is None
    assert root.storages["inner"].storages["deep"].read("x") == b"y" * 5000


def test_circles_and_short_files_end_in_an_error(tmp_path: Path) -> None:
    whole = compound_file({"a": b"x" * 5000})
    path = tmp_path / "a.bin"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        read_compound_file(path)
    circle = bytearray(whole)
    table = struct.unpack_from("<I", whole, 76)[0]
    circle[(table + 1) * 512 : (table + 1) * 512 + 4] = struct.pack("<I", 0)  # a sector that follows itself
    path.write_bytes(circle)
    with pytest.raises(DataError, match="circle"):
        read_compound_file(path).read("a")
    path.write_bytes(b"no such file")
    with pytest.raises(DataError, match="no compound file"):
        read_compound_file(path)
