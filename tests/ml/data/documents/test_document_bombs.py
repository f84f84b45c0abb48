"""Bombs among documents: each is named with its reason, in bounded memory and time, and the good ones are read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from tests.ml.data.bombs import pdf_bomb, zip_bomb

from luthier.core.errors import DataError
from luthier.core.ports import SilentProgress
from luthier.ml.data.documents.ingest import ingest
from luthier.ml.data.documents.ingest_worker import IngestSettings
from luthier.ml.data.files.untrusted_input import check_archive

MEMORY_BYTES: Final = 1536 << 20
"""Of the reading process, libraries included."""
TYPES: Final = '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'


def docx(path: Path) -> Path:
    return zip_bomb(path, "word/document.xml", {"[Content_Types].xml": TYPES})


def pptx(path: Path) -> Path:
    return zip_bomb(path, "ppt/slides/slide1.xml", {"[Content_Types].xml": TYPES, "ppt/presentation.xml": "<p/>"})


def xlsx(path: Path) -> Path:
    return zip_bomb(path, "xl/sharedStrings.xml", {"[Content_Types].xml": TYPES, "xl/workbook.xml": "<w/>"})


def epub(path: Path) -> Path:
    return zip_bomb(path, "OEBPS/one.xhtml", {"mimetype": "application/epub+zip", "META-INF/container.xml": "<c/>"})


def one_text_in_many_cells(path: Path) -> Path:
    """A workbook whose one text of 30,000 letters stands in 60,000 cells: no entry of it unpacks to much."""
    main, office = "http://schemas.openxmlformats.org/spreadsheetml/2006/main", "http://schemas.openxmlformats.org"
    kinds, links = f"{office}/package/2006/content-types", f"{office}/package/2006/relationships"
    of, part = f"{office}/officeDocument/2006/relationships", "application/vnd.openxmlformats-officedocument."
    cells = "".join(f'<row r="{n}"><c r="A{n}" t="s"><v>0</v></c></row>' for n in range(1, 60_001))
    entries = {
        "[Content_Types].xml": f'<Types xmlns="{kinds}"><Default Extension="rels" ContentType="application/vnd.'
        'openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" '
        f'ContentType="{part}spreadsheetml.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" '
        f'ContentType="{part}spreadsheetml.worksheet+xml"/><Override PartName="/xl/sharedStrings.xml" '
        f'ContentType="{part}spreadsheetml.sharedStrings+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{links}"><Relationship Id="rId1" Type="{of}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{of}"><sheets><sheet name="a" sheetId="1" r:id="rId1"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{links}"><Relationship Id="rId1" Type="{of}/worksheet" '
        f'Target="worksheets/sheet1.xml"/><Relationship Id="rId2" Type="{of}/sharedStrings" '
        'Target="sharedStrings.xml"/></Relationships>',
        "xl/sharedStrings.xml": f'<sst xmlns="{main}"><si><t>{"a" * 30_000}</t></si></sst>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return path


BOMBS: Final[dict[str, Callable[[Path], Path]]] = {
    "bomb.docx": docx,
    "bomb.pptx": pptx,
    "bomb.xlsx": xlsx,
    "bomb.epub": epub,
    "bomb.pdf": pdf_bomb,
    "cells.xlsx": one_text_in_many_cells,
}


def test_bombs_among_good_documents(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(10):
        (docs / f"good{number}.md").write_text(f"# Title {number}\n\nText number {number}.")
    for name, make in BOMBS.items():
        assert make(docs / name).stat().st_size < 8 << 20, name
    done = ingest(
        [docs],
        tmp_path / "rows.jsonl",
        settings=IngestSettings(100, 0, None, None, None),
        num_workers=1,
        progress=SilentProgress(),
        timeout_seconds=60.0,
        memory_bytes=MEMORY_BYTES,
    )
    reasons = {one.file: one.reason or "" for one in done.failed}
    assert reasons.keys() == BOMBS.keys()
    for name in ("bomb.docx", "bomb.pptx", "bomb.xlsx", "bomb.epub"):
        assert "looks like a decompression bomb" in reasons[name]
    bounded = ("of memory", "the process that read it ended", "not done after", "no text", "broken PDF")
    for name in ("bomb.pdf", "cells.xlsx"):
        assert any(words in reasons[name] for words in bounded), reasons[name]
    assert sorted(one.file for one in done.documents if one.status == "read") == [f"good{n}.md" for n in range(10)]
    assert done.num_rows == 10


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_found_whatever_the_part_is_called(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "book.epub"
    laughs = '<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><package>&b;</package>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", '<c><rootfile full-path="content.bin"/></c>')
        archive.writestr("content.bin", laughs.encode(encoding))
    with pytest.raises(DataError, match="declares XML entities"):
        check_archive(path)
