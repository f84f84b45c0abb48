from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# Title\n\nSome text. More of it.")
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\n")
    (folder / "c.json").write_text("{}")
    return folder


def test_the_answer_names_what_was_read_and_what_not(luthier: Any, docs: Path, tmp_path: Path) -> None:
    done = luthier("data", "ingest", docs, "-o", tmp_path / "rows.jsonl")
    assert done.code == 0, done.err
    assert "2 of 3 read" in done.out
    assert "words, as no model was given" in done.out
    assert "broken.pdf: broken PDF" in done.out
    assert "b.txt: 1 of 1 lines are not UTF-8" in done.out
    assert ".json: 1 (c.json)" in done.out


def test_json_with_a_model(luthier: Any, docs: Path, tmp_path: Path, tiny_model: Path) -> None:
    output = tmp_path / "rows.jsonl"
    asked = ("--model", tiny_model, "--licence", "CC0-1.0", "--workers", 1, "--json")
    done = luthier("data", "ingest", docs, "-o", output, *asked)
    assert done.document["unit"] == f"tokens of {tiny_model}"
    assert (done.document["num_documents"], done.document["num_failed"], done.document["num_rows"]) == (3, 1, 2)
    assert json.loads(output.read_text().splitlines()[0])["provenance"]["licence"] == "CC0-1.0"


def test_exit_codes(luthier: Any, docs: Path, tmp_path: Path) -> None:
    assert luthier("data", "ingest", docs, "-o", tmp_path / "rows.jsonl", "--fail-on-error").code == 1
    done = luthier("data", "ingest", docs / "broken.pdf", "-o", tmp_path / "none.jsonl")
    assert done.code == 2
    assert "no rows" in done.err
    assert luthier("data", "ingest", docs, "-o", tmp_path / "rows.txt").code == 2
    assert luthier("data", "ingest", docs / "nothing", "-o", tmp_path / "rows.jsonl").code == 2
    assert luthier("data", "ingest", docs, "-o", tmp_path / "rows.jsonl", "--overlap-tokens", 300).code == 2
