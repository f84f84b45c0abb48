"""What an audit finds in a data file: findings, and a grade with its reasons."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.core.dataset import Shape
from luthier.core.frozen_model import FrozenModel

Severity = Literal["error", "warning", "info"]
Grade = Literal["A", "B", "C", "D", "F"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


class FindingExample(FrozenModel):
    """One place that a person can look at.

    Attributes:
        row: the row's id (`name.jsonl:17`).
        excerpt: a piece of its text.
        note: what is wrong there.
    """

    row: str
    excerpt: str
    note: str = ""


class Finding(FrozenModel):
    """One thing that a check found.

    Attributes:
        check: id of the check.
        severity: how bad it is.
        count: how many rows it is about (0 where it is about the file as a whole).
        fraction: count over all rows of the file.
        message: one sentence with the figures and their units.
        fix: what to do.
        examples: places to look at.
        details: further figures of this check, JSON values only.
        lines: every row it is about, by line (row number where the format has no lines), ascending; these are the rows
            that `data repair` removes or changes, so of duplicates the one that is kept is not among them.
    """

    check: str
    severity: Severity
    count: int
    fraction: float
    message: str
    fix: str
    examples: tuple[FindingExample, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)
    lines: tuple[int, ...] = Field(default=(), exclude=True, repr=False)


class Audit(FrozenModel):
    """The outcome of all checks on one file.

    Attributes:
        file: the file.
        sha256: its digest.
        num_bytes: its size.
        num_rows: its rows.
        shape: how its rows are read; None where no shape fits.
        shape_reason: why they are read so.
        model: the base model whose tokens are counted; None without one.
        against: the held-out file that it was compared with; None without one.
        grade: A (nothing but notes) to F (must not be trained on).
        grade_reasons: why it is not better, worst first.
        findings: what the checks found.
        checks: ids of the checks that ran.
        skipped: check -> why it could not be run (no held-out file, no model).
        profile: what the file holds, for the report and the card: JSON values only.
    """

    file: str
    sha256: str
    num_bytes: int
    num_rows: int
    shape: Shape | None
    shape_reason: str
    model: str | None
    against: str | None
    grade: Grade
    grade_reasons: tuple[str, ...]
    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    skipped: dict[str, str]
    profile: dict[str, Any]

    def worst(self) -> Severity | None:
        """The gravest severity among the findings; None where there is none."""
        found = {finding.severity for finding in self.findings}
        # SEVERITIES is in order of gravity.
        return next((severity for severity in SEVERITIES if severity in found), None)
