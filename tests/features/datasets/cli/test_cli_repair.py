"""`luthier data repair` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    said: list[dict[str, Any]] = [{"prompt": f"what is {n}?", "completion": f"a number, {n}"} for n in range(8)]
    said += [said[0], {"prompt": "who?", "completion": "anna@acme-corp.com"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    return path


def test_the_answer_is_the_summary(luthier: Any, rows: Path, tmp_path: Path) -> None:
    done = luthier("data", "repair", rows, "-o", tmp_path / "clean.jsonl", "--json")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "clean.jsonl.repair.json").read_text(encoding="utf-8"))
    assert {name: value for name, value in done.document.items() if name != "paths"} == summary
    assert done.document["paths"]["manifest"] == str(tmp_path / "clean.jsonl.manifest.jsonl")
    assert summary["fates"] == {"kept": 8, "changed": 1, "removed": 1}


def test_a_person_reads_fates_and_grades(luthier: Any, rows: Path, tmp_path: Path) -> None:
    done = luthier("data", "repair", rows, "-o", tmp_path / "clean.jsonl", "--only", "exact_duplicate,personal_data")
    assert done.code == 0, done.err
    for words in ("10 rows; 8 kept, 1 changed, 1 removed", "exact_duplicate", "personal_data", "A after", "manifest"):
        assert words in done.out
    assert "near_duplicate" not in done.out
    assert "acme" not in done.out


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--only", "duplicates"], "NotFoundError"),
        (["--only", ","], "RequestError"),
        (["--only", "contamination"], "RequestError"),
        (["--against", "absent.jsonl"], "NotFoundError"),
        (["--map", "prompt=absent"], "DataError"),
    ],
)
def test_wrong_requests_are_refused(luthier: Any, rows: Path, tmp_path: Path, arguments: list[str], kind: str) -> None:
    done = luthier("data", "repair", rows, "-o", tmp_path / "clean.jsonl", *arguments, "--json")
    assert (done.code, done.document["error"]["type"]) == (2, kind)
    assert not (tmp_path / "clean.jsonl").exists()


def test_the_input_as_output_is_refused(luthier: Any, rows: Path) -> None:
    before = rows.read_bytes()
    done = luthier("data", "repair", rows, "-o", rows, "--force", "--json")
    assert (done.code, done.document["error"]["type"]) == (2, "RequestError")
    assert rows.read_bytes() == before


def test_rows_over_the_context_of_a_model_go(luthier: Any, rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "long?", "completion": " ".join(str(n) for n in range(9_000))}) + "\n")
    arguments = ("data", "repair", rows, "-o", tmp_path / "clean.jsonl", "--only", "over_context", "--json")
    assert luthier(*arguments).document["error"]["type"] == "RequestError"
    done = luthier(*arguments, "--model", tiny_model)
    assert done.code == 0, done.err
    assert done.document["fates"] == {"kept": 10, "changed": 0, "removed": 1}


def test_what_was_masked_is_shown_before_and_after(luthier: Any, rows: Path, tmp_path: Path) -> None:
    done = luthier("data", "repair", rows, "-o", tmp_path / "clean.jsonl")
    assert done.code == 0, done.err
    for words in ("masked   email: 1 value in 1 row", "line 10: a•••@a•••-c•••.c••", "becomes person1@example.com"):
        assert words in done.out
    assert "not masked  street, name" in done.out
    assert "acme" not in done.out


def test_kinds_are_named_and_left(luthier: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    said = [
        {"prompt": "Where?", "completion": "12 Baker Street"},
        {"prompt": "Who?", "completion": "zoe@acme-corp.com"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    done = luthier(
        "data", "repair", path, "-o", tmp_path / "c.jsonl", "--mask", "streets", "--no-mask", "emails", "--json"
    )
    assert done.code == 0, done.err
    assert [(one["kind"], one["num_rows"]) for one in done.document["masked"]] == [("street", 1)]
    assert "zoe@acme-corp.com" in (tmp_path / "c.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--mask", "adresses"], "NotFoundError"),
        (["--mask", "phones", "--no-mask", "phones"], "RequestError"),
        (["--mask", "phones", "--skip", "personal_data"], "RequestError"),
    ],
)
def test_kinds_that_cannot_be_masked(luthier: Any, rows: Path, tmp_path: Path, arguments: list[str], kind: str) -> None:
    done = luthier("data", "repair", rows, "-o", tmp_path / "clean.jsonl", *arguments, "--json")
    assert done.document["error"]["type"] == kind
    assert not (tmp_path / "clean.jsonl").exists()
