"""A whole audit: what was found, what could not be looked for, and the grade."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from luthier.core.errors import NotFoundError
from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.run import run_audit

ONLY = ["schema", "encoding", "over_context", "empty_completion", "few_examples"]


def test_findings_skipped_checks_and_grade(pairs: Callable[..., AuditRequest]) -> None:
    request = pairs(*(f"A real answer of some length, so that it can be learned: {at}." for at in range(300)), "tbd")
    audit = run_audit(request, ONLY)
    assert audit.checks == tuple(ONLY)
    assert [finding.check for finding in audit.findings] == ["empty_completion"]
    assert list(audit.skipped) == ["over_context"]
    assert (audit.grade, len(audit.grade_reasons)) == ("B", 1)
    assert audit.worst() == "warning"
    assert (audit.num_rows, audit.shape, audit.against) == (301, "prompt_completion", None)
    assert audit.sha256 == request.table.sha256
    assert audit.model_validate_json(audit.model_dump_json()).findings[0].count == 1


def test_the_same_request_gives_the_same_audit(pairs: Callable[..., AuditRequest]) -> None:
    request = pairs("one", "CafÃ©", "<b>two</b>", "three...")
    assert run_audit(request, ONLY).model_dump_json() == run_audit(request, ONLY).model_dump_json()


@pytest.mark.parametrize("rows", [("{broken", "nope"), ({"foo": "a"}, {"bar": "b"}), ({"text": ""},), ({"text": "a"},)])
def test_every_check_copes_with_a_poor_file(audited: Callable[..., AuditRequest], rows: tuple[object, ...]) -> None:
    audit = run_audit(audited(*rows))
    assert audit.grade == "F"
    assert {finding.check for finding in audit.findings} | set(audit.skipped) <= set(audit.checks)


def test_every_check_copes_with_a_row_of_ten_million_characters(audited: Callable[..., AuditRequest]) -> None:
    long = {"prompt": "q", "completion": "word " * 2_000_000}
    audit = run_audit(audited(long, {"prompt": "r", "completion": "b"}))
    assert any(finding.check == "repeated_completion" for finding in audit.findings)


def test_an_unknown_check_is_refused(audited: Callable[..., AuditRequest]) -> None:
    with pytest.raises(NotFoundError):
        run_audit(audited({"text": "a"}), ["spelling"])
