"""Corpora from folders, files and rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import DataError, NotFoundError
from luthier.features.datasets.documents import ingest, read_corpus
from luthier.platform.home.context import Context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "law"
    (place / "statutes").mkdir(parents=True)
    (place / "statutes" / "notice.md").write_text("# § 21-4-12. Notice\n\nThirty days.\n\n## Note\n\nNone.\n")
    (place / "harrow.txt").write_text("Harrow v. Mills, 31 Pelm. 204 (2019). " * 400)
    (place / ".hidden").write_text("nothing")
    return place


def test_a_folder_is_read_whole(folder: Path) -> None:
    found = read_corpus(folder)
    assert list(found) == ["harrow.txt", "statutes/notice.md"]
    assert found["statutes/notice.md"].startswith("§ 21-4-12. Notice")
    assert "None." in found["statutes/notice.md"]
    assert found["harrow.txt"].count("31 Pelm. 204") == 400
    assert list(folder.iterdir()) == list(folder.iterdir())
    assert sorted(one.name for one in folder.iterdir()) == [".hidden", "harrow.txt", "statutes"]


def test_one_document_is_a_corpus(folder: Path) -> None:
    assert list(read_corpus(folder / "harrow.txt")) == ["harrow.txt"]


def test_rows_of_an_ingest_are_put_together_by_document(folder: Path, tmp_path: Path) -> None:
    with Context.open(tmp_path / "home") as context:
        ingest(context, [folder], tmp_path / "rows.jsonl", num_workers=1, chunk_tokens=64, overlap_tokens=0)
    found = read_corpus(tmp_path / "rows.jsonl")
    assert list(found) == ["harrow.txt", "statutes/notice.md"]
    assert found["harrow.txt"].count("31 Pelm. 204") == 400


def test_rows_without_a_source_are_documents_of_their_own(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "two")))
    assert read_corpus(rows) == {"rows.jsonl:1": "one", "rows.jsonl:2": "two"}


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "scan.png").write_bytes(b"\x89PNG")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing more")
    (folder / "empty.md").write_text("")
    with pytest.raises(DataError, match="3 files of the corpus") as caught:
        read_corpus(folder)
    assert {problem.file for problem in caught.value.problems} == {"scan.png", "broken.pdf", "empty.md"}


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no corpus"):
        read_corpus(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no rows"):
        read_corpus(tmp_path / "empty")
    bad = tmp_path / "rows.jsonl"
    bad.write_text('{"text": ""}\n{"body": "x"}\n')
    with pytest.raises(DataError, match="2 rows of the corpus"):
        read_corpus(bad)
