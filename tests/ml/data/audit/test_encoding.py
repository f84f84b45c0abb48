"""Each sort of damage is found, with the place shown, and text that only looks odd is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.encoding import check
from luthier.ml.data.audit.schema import check as check_schema
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.text.clean_text import clean_text

CLEAN = ["A plain row.", "IRMÃ, “MANHÃ”, Spaß“", "a < b && c > d", "日本語 😀", "Use HTML like <b>this</b>"]


def of_sort(findings: list[Finding], sort: str) -> Finding:
    (found,) = [finding for finding in findings if finding.details["sort"] == sort]
    return found


def test_clean_rows_have_no_findings(audited: Callable[..., AuditRequest]) -> None:
    assert check(audited(*({"text": text} for text in CLEAN))) == []


@pytest.mark.parametrize(
    ("text", "sort", "shown"),
    [
        ("CafÃ© and itâ€™s", "mojibake", ""),
        ("a\x0cb \ufeff", "control_characters", "U+000C, U+FEFF"),
        ("<p>Hello</p>", "html", ""),
        ("Tom &amp; Jerry", "html", ""),
    ],
)
def test_damage_that_can_be_repaired_names_its_rows(
    audited: Callable[..., AuditRequest], text: str, sort: str, shown: str
) -> None:
    (finding,) = check(audited(*({"text": clean} for clean in CLEAN), {"text": text}))
    assert (finding.details["sort"], finding.severity, finding.count, finding.lines) == (sort, "warning", 1, (6,))
    assert finding.examples[0].note == shown
    assert clean_text(text)[1]


def test_lost_characters_are_named_but_no_repair_can_help(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check(audited({"text": "x" * 500 + "caf\ufffd"}, {"text": "b"}))
    assert (finding.details["sort"], finding.count, finding.lines) == ("lost_characters", 1, ())
    assert "\ufffd" in finding.examples[0].excerpt


def test_html_in_most_rows_is_a_note(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check(audited({"text": "<p>one</p>"}, {"text": "<p>two</p>"}, {"text": "three"}))
    assert (finding.severity, finding.count, finding.lines) == ("info", 2, ())


def test_copies_do_not_make_html_meant(audited: Callable[..., AuditRequest]) -> None:
    rows = [{"text": "<p>one</p>"}] * 5 + [{"text": text} for text in ("two", "three", "four")]
    (finding,) = check(audited(*rows))
    assert (finding.severity, finding.count, finding.details["is_meant"]) == ("warning", 5, False)


def test_bytes_that_are_no_utf8_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + '{"text": "café"}\n'.encode("latin-1"))
    (finding,) = check(AuditRequest(build_table(path)))
    assert (finding.severity, finding.lines, finding.details["sort"]) == ("error", (2,), "not_utf8")


def test_the_place_is_shown_in_a_row_of_ten_million_characters(audited: Callable[..., AuditRequest]) -> None:
    findings = check(audited({"text": "word " * 2_000_000 + "CafÃ©"}, {"text": "b"}, {"text": "c"}))
    assert "CafÃ©" in of_sort(findings, "mojibake").examples[0].excerpt


def test_half_of_a_surrogate_pair_is_an_error_of_encoding(audited: Callable[..., AuditRequest]) -> None:
    request = audited({"text": "a"}, '{"text": "b\\ud800"}')
    findings = check(request)
    assert [(finding.details["sort"], finding.lines) for finding in findings if finding.severity == "error"] == [
        ("not_utf8", (2,))
    ]
    assert check_schema(request) == []
