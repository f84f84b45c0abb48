from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report_html import checked, words

from luthier.core.results.audit import Audit, Finding, FindingExample
from luthier.ml.data.audit.report import render_audit, write_audit_report
from luthier.ml.data.audit.table import AuditTable, build_table

VERSIONS = {"luthier": "0.1.0", "python": "3.11"}
HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x00\x1b[2J\u202eabc\ufeff\ud83d"


def test_the_page_is_whole_refers_to_nothing_outside_and_repeats_byte_for_byte(
    table: AuditTable, audit_of: Callable[..., Audit]
) -> None:
    page = render_audit(audit_of(table), table, versions=VERSIONS)
    checked(page)
    assert page == render_audit(audit_of(table), table, versions=VERSIONS)
    assert len(page.encode()) < 1_500_000


def test_grade_then_findings_gravest_first_then_what_was_not_looked_at(
    table: AuditTable, audit_of: Callable[..., Audit]
) -> None:
    text = words(render_audit(audit_of(table), table, versions=VERSIONS))
    parts = (
        "Must not be trained on as it is. 1 error, 2 warnings and 1 note in 240 rows.",
        "What was found",
        "3 rows hold an e-mail address. What to do",
        "31 rows nearly repeat another one, in 4 clusters. What to do",
        "92% of the rows are English",
        "What was not checked",
        "contaminationno held-out file given: --against",
        "Checked, nothing found schema encoding",
        "What the file holds",
        "SHA-256" + table.sha256,
        "luthier0.1.0",
    )
    squeezed = text.replace("> <", "><")
    places = [re.sub(r"\s", "", squeezed).index(re.sub(r"\s", "", part)) for part in parts]
    assert places == sorted(places)


def test_a_finding_shows_rows_share_interval_examples_and_a_command_for_this_file(
    table: AuditTable, audit_of: Callable[..., Audit]
) -> None:
    html = render_audit(audit_of(table), table, versions={})
    text = words(html)
    assert "31 rows, 12.9" in text
    assert "95% interval [1.03" in text  # Wilson, 3 of 100
    assert text.count("95% interval") == 1
    assert f"luthier data repair {table.path} -o messages.clean.jsonl --only near_duplicate" in text
    assert "messages.jsonl:3" in text
    assert "3 more examples" in text
    assert "3,000 more characters are left out here." in text  # 9,000 of which 6,000 are on the page


def test_every_chart_stands_on_the_page_with_its_sentence(table: AuditTable, audit_of: Callable[..., Audit]) -> None:
    html = render_audit(audit_of(table), table, versions={})
    for name in ("length", "labels", "languages", "clusters", "personal", "map"):
        assert f'id="chart-{name}-title"' in html
    text = words(html)
    assert "Half of the rows have" in text
    assert "“en” has 200 rows, the most of 4." in text
    assert "Left out, as nearly all begin with it: “Name the class of this message:”" in text


def test_limits_of_length_and_the_context_of_the_model_are_marked(
    table: AuditTable, audit_of: Callable[..., Audit]
) -> None:
    import polars as pl

    from luthier.ml.data.audit.table import with_rows

    tokens = table.frame["text"].str.len_chars().cast(pl.UInt32)
    counted = with_rows(table, table.frame.with_columns(num_tokens=tokens))
    details = [
        ("length", {"sort": "distribution", "unit": "tokens"}),
        ("length", {"sort": "short", "limit": 80}),
        ("length", {"sort": "long", "limit": 400.0}),
        ("over_context", {"context_tokens": 512}),
    ]
    findings = [
        Finding(check=check, severity="info", count=1, fraction=0.01, message="m", fix="f", details=inner)
        for check, inner in details
    ]
    html = render_audit(audit_of(counted, findings), counted, versions={})
    for mark in ("short under, 80", "long over, 400", "context, 512", "Length of rows in tokens"):
        assert mark in words(html)


@pytest.mark.parametrize("grade", ["A", "B", "C", "D", "F"])
def test_each_grade_has_its_words(grade: str, table: AuditTable, audit_of: Callable[..., Audit]) -> None:
    text = words(render_audit(audit_of(table, grade=grade, grade_reasons=()), table, versions={}))
    assert f"messages.jsonl: grade {grade}" in text


def test_a_file_without_findings_says_so_and_still_names_what_was_skipped(
    table: AuditTable, audit_of: Callable[..., Audit]
) -> None:
    text = words(render_audit(audit_of(table, []), table, versions={}))
    assert "Nothing blocks training on this file. No finding in 240 rows." in text
    assert "1 check was not run, so nothing is known about contamination" in text
    assert "Nothing, by the checks that were run." in text


def hostile_table(folder: Path) -> AuditTable:
    import json

    path = folder / "hostile.jsonl"
    rows: list[Any] = [
        {"prompt": f"<script>{i}</script> {HOSTILE[:-1]}", "completion": "x", "label": HOSTILE[:60]} for i in range(9)
    ]
    rows += [{"prompt": "日本語 の テスト", "completion": "はい", "label": "日本語 עברית हिन्दी"}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_table(path)


def test_hostile_rows_and_words_of_checks_stay_text(tmp_path: Path, audit_of: Callable[..., Audit]) -> None:
    table = hostile_table(tmp_path)
    finding = Finding(
        check="schema",
        severity="error",
        count=1,
        fraction=0.1,
        message=HOSTILE,
        fix=f"{HOSTILE} `luthier data repair FILE` `{HOSTILE}`",
        examples=(FindingExample(row=HOSTILE, excerpt=HOSTILE, note=HOSTILE), FindingExample(row="a", excerpt="")),
        details={"kind": HOSTILE, HOSTILE: HOSTILE, "clusters": "none", "counts": [1]},
    )
    audit = audit_of(table, [finding], skipped={HOSTILE: HOSTILE}, against=HOSTILE, model=HOSTILE)
    html = render_audit(audit, table, versions={HOSTILE: HOSTILE})
    checked(html)
    assert "<script" not in html
    for hidden in ("\x00", "\x1b", "\u202e", "\ufeff", "\ud83d"):
        assert hidden not in html
    assert "⟨U+202E⟩" in html
    html.encode()


def test_details_of_unexpected_form_break_nothing(table: AuditTable, audit_of: Callable[..., Audit]) -> None:
    odd: list[dict[str, Any]] = [
        {},
        {"counts": None, "clusters": None, "kind": None},
        {"counts": {"a": "x"}, "clusters": [1, {}, {"lines": "x"}], "sample_size": True},
        {"counts": {}, "clusters": [], "sort": "long", "limit": "x", "context_tokens": None, "sample_size": 0},
    ]
    for details in odd:
        findings = [
            Finding(check=check, severity="info", count=1, fraction=0.1, message="m", fix="f ` g", details=details)
            for check in ("length", "near_duplicate", "language", "label_imbalance", "personal_data", "secret")
        ]
        checked(render_audit(audit_of(table, findings), table, versions={}))


@pytest.mark.parametrize("text", ['{"a": "x"}\n', '{"text": ""}\n', '{"text": "one"}\n', "{broken\n"])
def test_files_with_next_to_nothing_in_them(text: str, tmp_path: Path, audit_of: Callable[..., Audit]) -> None:
    path = tmp_path / "little.jsonl"
    path.write_text(text)
    table = build_table(path)
    checked(render_audit(audit_of(table, []), table, versions={}))


def test_the_page_reaches_the_disk_with_its_folder(
    tmp_path: Path, table: AuditTable, audit_of: Callable[..., Audit]
) -> None:
    path = write_audit_report(tmp_path / "new" / "report.html", audit_of(table), table, versions=VERSIONS)
    assert path.read_text(encoding="utf-8") == render_audit(audit_of(table), table, versions=VERSIONS)
    assert [other.name for other in path.parent.iterdir()] == ["report.html"]
