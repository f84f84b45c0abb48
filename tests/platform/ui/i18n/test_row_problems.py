"""What is wrong with imported rows is told in the language of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.features.datasets.imports import RemoteOrder
from luthier.features.datasets.remote_rows import gather
from luthier.ml.data.conversations.exports import convert
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


_MAIL = (
    "From {0}@{0}.de Tue Dec  1 09:00:00 2026\nFrom: {0}@{0}.de\nTo: {0}{0}@{0}{0}.de\nSubject: {0}\n"
    "Message-ID: <{0}>\nDate: Tue, 01 Dec 2026 09:00:00 +0000\n\n{1}\n\n"
)


@pytest.mark.parametrize(
    ("content", "chosen", "came", "expected"),
    [
        (
            "no mails",
            (),
            "a.mbox ist kein Mailarchiv: es beginnt nicht mit `From `",
            "eine mbox-Datei mit einer Zeile `From ` über jeder Mail",
        ),
        (
            "".join(_MAIL.format(name, "Hello") for name in "abcd"),
            (),
            "wer in a.mbox antwortet, ist nicht klar: keine Absenderadresse ist an den meisten Mails beteiligt",
            "Ihre eigene Adresse, deren Mails die Antworten sind",
        ),
        (
            "".join(_MAIL.format(name, text) for name, text in (("a", "Hello"), ("b", ""))),
            ("z@z.de",),
            "a.mbox enthält kein Gespräch mit einer Frage und einer Antwort: "
            "Gespräche ohne Antwort des Assistenten: 2; Nachrichten ohne Text: 1",
            "ein Mailarchiv, worin jemand antwortet",
        ),
    ],
)
def test_why_an_export_of_conversations_is_not_taken(
    tmp_path: Path, content: str, chosen: tuple[str, ...], came: str, expected: str
) -> None:
    (tmp_path / "a.mbox").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        convert(tmp_path / "a.mbox", "mbox", "a.mbox", tmp_path / "rows.jsonl", chosen)
    german = catalog("de")
    assert german.sentence(caught.value.came, str) == came
    assert german.sentence(caught.value.expected, str) == expected
    noted = german.sentence(f"{caught.value.came}; {caught.value.do}", str) or ""
    assert noted.startswith(f"{came}; ")
    assert noted.endswith(german.sentence(caught.value.do, str) or "untranslated")
    whole = f"read as documents and not as conversations: {caught.value.came}"
    if chosen:
        assert german.sentence(whole, str) == f"als Dokumente gelesen und nicht als Gespräche: {came}"
