"""All checks on one file, one after the other, and the grade."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.results.audit import Audit, Finding
from luthier.ml.data.audit.grade import grade_of
from luthier.ml.data.audit.profile import profile_of
from luthier.ml.data.audit.registry import load_checks
from luthier.ml.data.audit.request import AuditRequest, Skipped


def run_audit(request: AuditRequest, only: Sequence[str] | None = None) -> Audit:
    """Run the checks of these ids (all where None) and grade what they find.

    The outcome is a pure function of the request.

    Raises:
        NotFoundError: an id that no check has.
    """
    checks = load_checks(only)
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    with request.progress.task("audit", len(checks), "check") as task:
        for name, check in checks.items():
            task.note(name)
            found = check(request)
            if isinstance(found, Skipped):
                skipped[name] = found.reason
            else:
                findings.extend(found)
            task.advance()
    grade, reasons = grade_of(findings)
    table = request.table
    return Audit(
        file=table.shown_path,
        sha256=table.sha256,
        num_bytes=table.num_bytes,
        num_rows=table.num_rows,
        shape=table.shape,
        shape_reason=table.shape_reason,
        model=request.model,
        against=request.held_out.shown_path if request.held_out is not None else None,
        grade=grade,
        grade_reasons=reasons,
        findings=tuple(findings),
        checks=tuple(checks),
        skipped=skipped,
        profile=profile_of(table),
    )
