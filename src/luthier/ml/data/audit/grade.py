"""One letter for a data file, and the reasons: a rule that can be read, not a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.results.audit import SEVERITIES, Finding, Grade

_MANY: Final = 0.01


def grade_of(findings: Sequence[Finding]) -> tuple[Grade, tuple[str, ...]]:
    """The grade and why it is not better, gravest first.

    F: an error about at least 1% of the rows, or about the file as a whole. D: another error. C: a warning about at
    least 1% of the rows, or about the file as a whole. B: another warning. A: neither.
    """
    grave = [finding for finding in findings if finding.severity != "info"]
    grave.sort(key=lambda finding: (SEVERITIES.index(finding.severity), -_weight(finding)))
    reasons = tuple(f"{finding.check} ({finding.severity}): {finding.message}" for finding in grave)
    if not grave:
        return "A", ()
    worst = grave[0]
    is_much = _weight(worst) >= _MANY
    if worst.severity == "error":
        return ("F" if is_much else "D"), reasons
    return ("C" if is_much else "B"), reasons


def _weight(finding: Finding) -> float:
    return finding.fraction if finding.count else 1.0
