from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    said = [{"prompt": f"What is {n} plus one, please?", "completion": f"It is {n + 1}."} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    return path


def test_a_card_and_croissant_are_written_and_what_is_unknown_is_said(luthier: Any, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "README.md"
    done = luthier("data", "card", rows, "-o", output, "--licence", "cc0-1.0", "--language", "en", "--json")
    assert done.code == 0, done.err
    document = done.document
    assert document["num_rows"] == 30
    assert document["not_stated"] == ["description", "uses", "sources"]
    assert document["croissant"] == str(tmp_path / "out" / "README.croissant.json")
    card = DatasetCard.load(output)
    assert card.data.license == "cc0-1.0"
    assert document["metadata"]["license"] == "cc0-1.0"
    assert f"Grade **{document['grade']}**" in card.text
    croissant = json.loads((tmp_path / "out" / "README.croissant.json").read_text())
    assert croissant["distribution"][0]["name"] == "rows.jsonl"


def test_a_card_for_a_person(luthier: Any, rows: Path, tmp_path: Path) -> None:
    done = luthier("data", "card", rows, "-o", tmp_path / "README.md", "--name", "Sums", "--uses", "Tests")
    assert done.code == 0
    assert "grade" in done.out
    assert "not stated: description, licence" in done.out
    assert "# Sums" in (tmp_path / "README.md").read_text()


def test_a_card_that_is_there_is_replaced_only_by_force(luthier: Any, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "README.md"
    output.write_text("mine")
    done = luthier("data", "card", rows, "-o", output)
    assert done.code == 2
    assert "already exists" in done.err
    assert output.read_text() == "mine"
    assert luthier("data", "card", rows, "-o", output, "--force").code == 0
    assert output.read_text() != "mine"


@pytest.mark.parametrize(("file", "output"), [("none.jsonl", "README.md"), ("rows.jsonl", "README.txt")])
def test_wrong_requests_end_with_code_two_and_no_file(
    file: str, output: str, luthier: Any, rows: Path, tmp_path: Path
) -> None:
    done = luthier("data", "card", tmp_path / file, "-o", tmp_path / output)
    assert done.code == 2
    assert not (tmp_path / output).exists()
    assert not list(tmp_path.glob("*.croissant.json"))
