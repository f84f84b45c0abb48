"""Audits as the service gives them: options that go together, files that stay as they are, one answer each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.features.datasets.data_files import AuditOptions, audit, names_of
from luthier.ml.data.files import process_workers
from luthier.platform.home.context import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context.open(tmp_path / "home")


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Sixty good rows and one of each common fault."""
    rows = [
        {"prompt": f"What is {n} plus {n + 3}?", "completion": f"The sum is {n + n + 3}, as one can count."}
        for n in range(60)
    ]
    rows.append(rows[4])
    rows.append({"prompt": "Who wrote it?", "completion": "Write to anna.keller@firma-keller.de, she knows."})
    rows.append({"prompt": "And then?", "completion": "  "})
    rows.append({"prompt": "Was it good?", "completion": "I'm sorry, but as an AI language model I cannot say."})
    rows.append({"prompt": "Who was there?", "completion": "The cafÃ© was full of people, and Zoë was there."})
    path = tmp_path / "messy.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join([*lines, "{broken"]) + "\n", encoding="utf-8")
    return path


def test_each_planted_fault_is_found_by_its_check_and_the_grade_says_why(context: Context, messy: Path) -> None:
    before = messy.read_bytes()
    found = audit(context, messy).audit
    lines = {
        (finding.check, line) for finding in found.findings for line in finding.lines if finding.severity != "info"
    }
    for expected in (
        ("exact_duplicate", 61),
        ("personal_data", 62),
        ("empty_completion", 63),
        ("refusal", 64),
        ("encoding", 65),
        ("schema", 66),
    ):
        assert expected in lines
    assert found.grade in ("D", "F")
    assert found.grade_reasons
    assert found.num_rows == 66
    assert set(found.skipped) >= {"contamination", "over_context"}
    assert messy.read_bytes() == before


def test_the_same_file_gives_the_same_answer(context: Context, messy: Path) -> None:
    assert audit(context, messy).as_json() == audit(context, messy).as_json()


def test_leaks_are_looked_for_against_a_held_out_file_and_lengths_in_tokens_of_a_model(
    context: Context, messy: Path, tmp_path: Path, tiny_model: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(messy.read_text(encoding="utf-8").splitlines()[10] + "\n", encoding="utf-8")
    options = AuditOptions(against=held_out, model=str(tiny_model))
    found = audit(context, messy, options).audit
    leaks = [finding for finding in found.findings if finding.check == "contamination"]
    assert any(11 in finding.lines and finding.severity == "error" for finding in leaks)
    assert "contamination" not in found.skipped
    assert found.model == str(tiny_model)
    assert "num_tokens" in found.profile


def test_the_report_is_a_page_beside_the_file(context: Context, messy: Path, tmp_path: Path) -> None:
    found = audit(context, messy, html=tmp_path / "new" / "report.html")
    assert found.report == tmp_path / "new" / "report.html"
    page = found.report.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "anna.keller@" not in page


def test_a_row_of_ten_million_characters_is_checked(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By its size the file would start processes, which load their libraries for longer than three rows take.
    monkeypatch.setattr(process_workers, "MIN_FILE_BYTES", 1 << 30)
    path = tmp_path / "long.jsonl"
    rows = [{"text": "word " * 2_000_000}, {"text": "1" * 10_000_000}, {"text": "a short one"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = audit(context, path).audit
    assert found.num_rows == 3


def test_rows_of_no_known_shape_are_a_finding_not_an_end(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("frage,antwort\nWarum?,Darum sagte er.\nWarum?,Darum sagte er.\n", encoding="utf-8")
    found = audit(context, path).audit
    assert found.shape is None
    assert {"schema", "exact_duplicate"} <= {finding.check for finding in found.findings}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (AuditOptions(only=("exact_duplicates",)), NotFoundError),
        (AuditOptions(against=Path("nowhere.jsonl")), NotFoundError),
        (AuditOptions(toxic_label="toxic"), RequestError),
        (AuditOptions(toxicity_model=Path("nowhere")), NotFoundError),
        (AuditOptions(mapping={"prompt": "nothing"}), DataError),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    context: Context, messy: Path, options: AuditOptions, error: type[Exception]
) -> None:
    with pytest.raises(error, match="what to do"):
        audit(context, messy, options)


def test_a_report_never_goes_over_the_file_that_is_read(context: Context, messy: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.html"
    link.symlink_to(messy)
    with pytest.raises(RequestError, match="the original is not changed"):
        audit(context, messy, html=link)


def test_names_of_checks_come_with_commas_or_one_by_one() -> None:
    assert names_of(None) is None
    assert names_of(["a,b", "c"]) == ("a", "b", "c")
    with pytest.raises(RequestError, match="names no check"):
        names_of([","])
