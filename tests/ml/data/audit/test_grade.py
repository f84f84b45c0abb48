"""The grade follows from the findings by a rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.results.audit import SEVERITIES, Finding, Severity
from luthier.ml.data.audit.run import grade_of


def finding(severity: Severity, fraction: float, count: int = 1, check: str = "x") -> Finding:
    return Finding(check=check, severity=severity, count=count, fraction=fraction, message="m", fix="f")


@pytest.mark.parametrize(
    ("severity", "fraction", "count", "grade"),
    [
        ("error", 0.01, 1, "F"),
        ("error", 0.0, 0, "F"),
        ("error", 0.009, 1, "D"),
        ("warning", 0.01, 1, "C"),
        ("warning", 0.0, 0, "C"),
        ("warning", 0.009, 1, "B"),
        ("info", 1.0, 1, "A"),
    ],
)
def test_the_rule(severity: Severity, fraction: float, count: int, grade: str) -> None:
    found, reasons = grade_of([finding("info", 0.5), finding(severity, fraction, count)])
    assert found == grade
    assert len(reasons) == (0 if grade == "A" else 1)


def test_nothing_found_is_an_a() -> None:
    assert grade_of([]) == ("A", ())


def test_reasons_begin_with_the_gravest() -> None:
    found = [finding("warning", 0.5, check="a"), finding("error", 0.001, check="b"), finding("error", 0.1, check="c")]
    grade, reasons = grade_of(found)
    assert grade == "F"
    assert reasons == ("c (error): m", "b (error): m", "a (warning): m")


FINDINGS = st.lists(st.builds(finding, st.sampled_from(SEVERITIES), st.floats(0, 1), st.integers(0, 3)), max_size=6)


@given(FINDINGS, FINDINGS)
def test_more_findings_never_make_it_better(some: list[Finding], more: list[Finding]) -> None:
    assert grade_of([*some, *more])[0] >= grade_of(some)[0]
    assert grade_of([*some, *more])[0] == grade_of([*more, *some])[0]
