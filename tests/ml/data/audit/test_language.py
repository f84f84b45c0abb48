"""The mix of languages, rows in another language than most, answers in another language than asked."""

from __future__ import annotations

from collections.abc import Callable

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.language import check

EN = "The violin maker planed the spruce top number {} until it rang like a bell."
DE = "Der Geigenbauer hobelte die Decke aus Fichte, bis sie wie eine Glocke klang."


def test_the_mix_is_a_note(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check(audited({"text": EN}, {"text": EN + " Really."}, {"text": DE}, {"text": "42"}))
    assert (finding.severity, finding.count) == ("info", 0)
    assert finding.details["counts"] == {"en": 2, "de": 1}
    assert finding.details["undetermined"] == 1


def test_a_stray_is_a_warning_with_its_row(audited: Callable[..., AuditRequest]) -> None:
    _, finding = check(audited(*({"text": EN.format(at)} for at in range(40)), {"text": DE}))
    assert (finding.severity, finding.lines) == ("warning", (41,))
    assert finding.details == {"sort": "stray", "counts": {"de": 1}}
    assert finding.examples[0].note.startswith("de (")


def test_where_answers_are_classes_the_prompts_are_looked_at(audited: Callable[..., AuditRequest]) -> None:
    rows = [{"prompt": EN.format(at), "completion": "good"} for at in range(40)]
    mix, stray = check(audited(*rows, {"prompt": DE, "completion": "bad"}))
    assert (mix.details["of"], mix.details["counts"]) == ("prompts", {"en": 40, "de": 1})
    assert "too short to tell" in mix.message
    assert stray.lines == (41,)
    assert stray.examples[0].excerpt == DE


def test_an_answer_in_another_language_is_a_warning_unless_that_is_the_task(
    audited: Callable[..., AuditRequest],
) -> None:
    same = [{"prompt": EN.format(at), "completion": EN.format(at + 100)} for at in range(4)]
    other = [{"prompt": EN.format(at), "completion": f"{DE} ({at})"} for at in range(10, 12)]
    findings = check(audited(*same, *other))
    assert [(finding.details["sort"], finding.severity, finding.count) for finding in findings] == [
        ("mix", "info", 0),
        ("prompt_differs", "warning", 2),
    ]
    assert findings[1].details["counts"] == {"en -> de": 2}
    assert check(audited(*other))[1].severity == "info"


def test_a_file_without_readable_rows_has_no_languages(audited: Callable[..., AuditRequest]) -> None:
    assert check(audited("{broken")) == []
