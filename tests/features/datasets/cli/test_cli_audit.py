"""`luthier data audit`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Name number {n}.", "completion": f"Its name is {n * 7} in full."} for n in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), encoding="utf-8")
    return path


def test_a_person_reads_grade_findings_and_what_was_not_looked_at(luthier, file: Path) -> None:  # type: ignore[no-untyped-def]
    done = luthier("data", "audit", file)
    assert done.code == 0
    assert "41 rows" in done.out
    assert "grade " in done.out
    assert "exact_duplicate" in done.out
    assert "rows.jsonl:41" in done.out
    assert "not run  contamination" in done.out


def test_json_has_grade_rows_and_findings(luthier, file: Path) -> None:  # type: ignore[no-untyped-def]
    document = luthier("data", "audit", file, "--json").document
    assert {"grade", "num_rows", "findings", "skipped", "profile"} <= set(document)
    (duplicate,) = [one for one in document["findings"] if one["check"] == "exact_duplicate"]
    assert {"check", "severity", "count", "fraction", "examples", "fix"} <= set(duplicate)
    assert (duplicate["count"], duplicate["fraction"]) == (1, pytest.approx(1 / 41))


def test_only_some_checks_are_run(luthier, file: Path) -> None:  # type: ignore[no-untyped-def]
    document = luthier("data", "audit", file, "--only", "exact_duplicate,schema", "--json").document
    assert document["checks"] == ["schema", "exact_duplicate"]


def test_the_exit_code_follows_the_severity_that_one_asks_for(luthier, file: Path) -> None:  # type: ignore[no-untyped-def]
    assert luthier("data", "audit", file, "--only", "exact_duplicate", "--fail-on", "warning").code == 1
    assert luthier("data", "audit", file, "--only", "exact_duplicate", "--fail-on", "error").code == 0
    assert luthier("data", "audit", file, "--only", "schema", "--fail-on", "warning").code == 0


def test_a_wrong_request_is_two(luthier, tmp_path: Path, file: Path) -> None:  # type: ignore[no-untyped-def]
    assert luthier("data", "audit", tmp_path / "nothing.jsonl").code == 2
    assert luthier("data", "audit", file, "--only", "nothing").code == 2
