"""Run all checks on one file: the table of checks, the profile of the file, and its grade.

The table holds "module:function" strings in the order in which the checks run and are shown. Entry points in the group
`luthier.checks` add to it; built-ins use the same door. The grade is one letter by a rule that can be read, not a
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from luthier.core.import_string import import_string
from luthier.core.registry import CHECKS
from luthier.core.results.audit import SEVERITIES, Audit, Finding, Grade
from luthier.ml.data.audit.base import AuditRequest, Check, Skipped, lengths_of
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.dedup.equal_values import column_digests, num_different_values

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


_QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_NUM_LABELS: Final = 50


def profile_of(table: AuditTable) -> dict[str, Any]:
    """Lengths by quantile (characters, and tokens where they were counted), labels and sources by number of rows."""
    found: dict[str, Any] = {"num_unreadable_rows": table.num_rows - table.height}
    if not table.height:
        return found
    found["text_characters"] = _quantiles(lengths_of(table.rows.texts("text")))
    for column in ("prompt", "completion"):
        lengths = lengths_of(table.rows.texts(column)).drop_nulls()
        if len(lengths):
            found[f"{column}_characters"] = _quantiles(lengths)
    if table.has_tokens:
        num_tokens = table.rows.column("num_tokens")
        found["text_tokens"] = _quantiles(num_tokens)
        found["num_tokens"] = int(num_tokens.cast(int).sum())
    first, counts = column_digests(table.rows, "label").counts()
    if len(first):
        names = table.rows.take(first[:_NUM_LABELS], "label")["label"].to_list()
        found["num_labels"] = len(first)
        found["labels"] = dict(zip(names, counts[:_NUM_LABELS].tolist(), strict=True))
    sources = num_different_values(table.rows, "source")
    if sources:
        found["num_sources"] = sources
    return found


def _quantiles(values: pl.Series) -> dict[str, float]:
    made = {f"q{round(100 * q):02d}": float(values.quantile(q, "nearest") or 0) for q in _QUANTILES}
    return {"mean": float(values.mean() or 0), **made}  # type: ignore[arg-type]


BUILT_IN = {
    "schema": "luthier.ml.data.audit.schema:check",
    "encoding": "luthier.ml.data.audit.encoding:check",
    "exact_duplicate": "luthier.ml.data.audit.duplicates:check_exact_duplicates",
    "near_duplicate": "luthier.ml.data.audit.duplicates:check_near_duplicates",
    "conflicting_completion": "luthier.ml.data.audit.conflicting_completion:check",
    "contamination": "luthier.ml.data.audit.contamination:check",
    "personal_data": "luthier.ml.data.audit.personal_data:check_personal_data",
    "secret": "luthier.ml.data.audit.personal_data:check_secrets",
    "toxicity": "luthier.ml.data.audit.toxicity:check",
    "language": "luthier.ml.data.audit.language:check",
    "length": "luthier.ml.data.audit.length:check_length",
    "over_context": "luthier.ml.data.audit.length:check_over_context",
    "empty_completion": "luthier.ml.data.audit.empty_completion:check",
    "truncated_completion": "luthier.ml.data.audit.truncated_completion:check",
    "repeated_completion": "luthier.ml.data.audit.repeated_completion:check",
    "refusal": "luthier.ml.data.audit.refusal:check",
    "label_imbalance": "luthier.ml.data.audit.label_imbalance:check",
    "prompt_injection": "luthier.ml.data.audit.prompt_injection:check",
    "constant_prompt": "luthier.ml.data.audit.constant_prompt:check",
    "few_examples": "luthier.ml.data.audit.few_examples:check",
}


def check_names() -> list[str]:
    """The ids that `load_checks` knows: built-ins in their order, then plug-ins by name."""
    return list(CHECKS.names())


def load_checks(names: Sequence[str] | None = None) -> dict[str, Check]:
    """The checks of these ids, in the order of the table.

    Args:
        names: Ids; None for all.

    Raises:
        NotFoundError: No table knows an id, or a plug-in cannot be loaded.
    """
    for name in names or ():
        if name not in BUILT_IN:
            CHECKS.plug_in(name)
    wanted = CHECKS.names() if names is None else [name for name in CHECKS.names() if name in names]
    return {name: import_string(BUILT_IN[name]) if name in BUILT_IN else CHECKS.load(name) for name in wanted}


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
