"""Use cases: the audit of a version: begun by a button, kept for the same rows and settings, its rows looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.features.datasets.records import DatasetVersion
from luthier.features.datasets.service import get_version
from luthier.features.files.references import AuditRequest, audit_of
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import check_is_local, model_digest
from luthier.platform.processes.result_cache import (
    CachedResult,
    Subject,
    cached_result,
    start_computation,
    store_result,
)

MAX_LINES: Final = 5000
"""Of so many rows of each finding the lines are kept."""


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The settings of an audit of a version; empty for none.

    Attributes:
        against: The id of the held-out dataset, of which the newest version counts.
        model: The base model whose tokens count.
    """

    against: str = ""
    model: str = ""


def audit_state(
    context: Context, caller: Caller, version: DatasetVersion, settings: AuditSettings | None = None
) -> CachedResult:
    """How it stands with an audit. Raises NotFoundError for the dataset to hold it against."""
    return cached_result(context, _subject(context, caller, version, settings or AuditSettings())[0])


def begin_audit(context: Context, caller: Caller, version: DatasetVersion, settings: AuditSettings) -> CachedResult:
    """Audit a version in the background.

    Raises NotFoundError for the dataset to hold it against, RequestError for a model that is not on this machine.
    """
    if settings.model:
        check_is_local(context, settings.model)
    subject, other = _subject(context, caller, version, settings)
    request = AuditRequest(
        version.file_id,
        against=None if other is None else other.file_id,
        model=settings.model or None,
        most_lines=MAX_LINES,
    )

    def answer() -> dict[str, Any]:
        found = audit_of(context, caller.project_id, request)
        if settings == AuditSettings():
            # Only the audit with default settings gives the grade: with other settings two grades would not compare.
            store_result(context, _grade(version), lambda: {"grade": found["grade"]})
        return found

    return start_computation(context, subject, answer)


def known_grade(context: Context, version: DatasetVersion) -> str | None:
    """The grade of a version by an audit without further settings, where there was one."""
    found = cached_result(context, _grade(version)).answer
    return None if found is None else found["grade"]


def finding_of(audited: CachedResult, number: int) -> dict[str, Any]:
    """A finding of a kept audit by its place, from 1 on. Raises NotFoundError."""
    findings = [] if audited.answer is None else audited.answer["findings"]
    if not 1 <= number <= len(findings):
        raise NotFoundError(
            f"no finding {number}",
            expected=f"one of the {len(findings)} findings of this audit" if findings else "an audit that was made",
            do="see the audit of the version, or run it again",
        )
    found: dict[str, Any] = findings[number - 1]
    return found


def _grade(version: DatasetVersion) -> Subject:
    """CachedResult beside the audit itself, which may be large, for lists of many datasets."""
    return Subject(version.sha256, "grade", {"suffix": files.suffix_of(version.filename)})


def _subject(
    context: Context, caller: Caller, version: DatasetVersion, settings: AuditSettings
) -> tuple[Subject, DatasetVersion | None]:
    other = get_version(context, caller, settings.against) if settings.against else None
    given = {
        # Findings name rows by the uploaded file, so the same content under another name is another audit.
        "filename": version.filename,
        "against": None if other is None else [other.sha256, other.filename],
        "model": [settings.model, model_digest(context, settings.model)] if settings.model else None,
    }
    return Subject(version.sha256, "audit", given), other
