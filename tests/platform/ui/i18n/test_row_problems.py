"""What is wrong with imported rows is told in the language of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.features.datasets.imports import RemoteOrder
from luthier.features.datasets.remote_rows import gather
from luthier.platform.ui.i18n.catalog import catalog

ROW = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "note", "german"),
    [
        (
            "rows.jsonl",
            f"{ROW}[1]\n7\n".encode(),
            "2 rows cannot be read, the first: line 2: is a list where an object is expected",
            "2 Zeilen sind nicht lesbar, die erste: Zeile 2: ist eine Liste, erwartet wird ein Objekt",
        ),
        (
            "rows.csv",
            b"prompt,completion\na,b\nc\n",
            "1 row cannot be read, the first: line 2: has 1 value where the header has 2 (record that ends on line 3 "
            "of the file)",
            "1 Zeile ist nicht lesbar, die erste: Zeile 2: hat 1 Wert, die Kopfzeile aber 2 (Datensatz, der in "
            "Zeile 3 der Datei endet)",
        ),
    ],
)
def test_rows_of_a_source_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, note: str, german: str
) -> None:
    (tmp_path / name).write_bytes(content)
    order = RemoteOrder(address=f"https://example.com/{name}")
    made = gather([(tmp_path / name, name)], order, tmp_path / "made.jsonl", max_bytes=1 << 20)
    assert [file.note for file in made.files] == [note]
    assert catalog("de").sentence(note, str) == german


@pytest.mark.parametrize(
    ("text", "german"),
    [
        ("line 4: is not JSON: extra data (column 3)", "Zeile 4: ist kein JSON: extra data (column 3)"),
        (
            "line 4: byte 12 of the file is NUL: binary or damaged",
            "Zeile 4: Byte 12 der Datei ist NUL: binär oder beschädigt",
        ),
        ("Looking up hub:openai/gsm8k", "hub:openai/gsm8k wird nachgeschlagen"),
    ],
)
def test_parts_of_such_notes_and_the_stages_of_an_import(text: str, german: str) -> None:
    assert catalog("de").sentence(text, str) == german
