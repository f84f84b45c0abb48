"""How many rows are enough, by method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.few_examples import check


@pytest.mark.parametrize(
    ("num", "method", "severity"),
    [
        (9, "lora", "error"),
        (49, "lora", "warning"),
        (199, "lora", "info"),
        (200, "lora", None),
        (200, "full", "warning"),
        (600, "full", "info"),
        (2_000, "full", None),
    ],
)
def test_limits_by_method(audited: Callable[..., AuditRequest], num: int, method: str, severity: str | None) -> None:
    rows = (
        {"text": f"Row {at} says enough in many words to learn from, so that tokens are not the matter."}
        for at in range(num)
    )
    found = check(replace(audited(*rows), method=method))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert all(finding.details["num_different_rows"] == num for finding in found)


def test_copies_and_broken_rows_do_not_count(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check(audited(*[{"text": "the same"}] * 300, "{broken"))
    assert (finding.severity, finding.details["num_different_rows"]) == ("error", 1)


def test_few_tokens_are_a_warning(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check(audited(*({"text": f"{at}"} for at in range(300))))
    assert finding.severity == "warning"
    assert finding.details["trained_tokens"] < 1_000
