"""Classes and how even they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.label_imbalance import check


def only(found: list[Finding] | Skipped) -> Finding:
    assert not isinstance(found, Skipped)
    (finding,) = found
    return finding


def labelled(**counts: int) -> list[dict[str, Any]]:
    return [{"text": f"text {at} {label}", "label": label} for label, num in counts.items() for at in range(num)]


def test_even_classes_are_a_note_with_counts(audited: Callable[..., AuditRequest]) -> None:
    finding = only(check(audited(*labelled(spam=20, ham=20))))
    assert (finding.severity, finding.count) == ("info", 0)
    assert finding.details["counts"] == {"ham": 20, "spam": 20}
    assert finding.details["entropy"] == pytest.approx(1.0)


@pytest.mark.parametrize("counts", [{"a": 100, "b": 10}, {"a": 20, "b": 4}, {"a": 30}])
def test_far_from_even_is_a_warning(audited: Callable[..., AuditRequest], counts: dict[str, int]) -> None:
    finding = only(check(audited(*labelled(**counts))))
    assert finding.severity == "warning"
    assert finding.details["entropy"] < 0.7


def test_completions_of_few_short_values_are_classes(pairs: Callable[..., AuditRequest]) -> None:
    finding = only(check(pairs(*["yes"] * 30, *["no"] * 2)))
    assert finding.details["counts"] == {"yes": 30, "no": 2}
    assert finding.details["rare"] == ["no"]


def test_texts_are_no_classes(audited: Callable[..., AuditRequest], pairs: Callable[..., AuditRequest]) -> None:
    assert isinstance(check(pairs(*(f"answer {at}" for at in range(60)))), Skipped)
    assert isinstance(check(pairs(*["yes", "no"] * 5)), Skipped)
    assert isinstance(check(audited(*({"text": f"t{at}", "label": f"l{at}"} for at in range(200)))), Skipped)
