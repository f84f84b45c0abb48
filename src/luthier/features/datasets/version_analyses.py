"""Use cases: cached analyses of a dataset version: audit, difference to another version, prompt map, tokens.

Each analysis runs in the background and is cached by version and settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.features.datasets.imports import fitting_columns
from luthier.features.datasets.service import get_version
from luthier.features.datasets.store import DatasetVersion
from luthier.features.files.references import AuditRequest, answer_about, audit_of
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
"""The lines of this many rows of each finding are kept."""


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
    """The state of an audit.

    Raises:
        NotFoundError: There is no dataset to compare it with.
    """
    return cached_result(context, _audit_subject(context, caller, version, settings or AuditSettings())[0])


def begin_audit(context: Context, caller: Caller, version: DatasetVersion, settings: AuditSettings) -> CachedResult:
    """Audit a version in the background.

    Raises:
        NotFoundError: There is no dataset to compare it with.
        RequestError: A model that is not on this machine.
    """
    if settings.model:
        check_is_local(context, settings.model)
    subject, other = _audit_subject(context, caller, version, settings)
    request = AuditRequest(
        version.file_id,
        against=None if other is None else other.file_id,
        model=settings.model or None,
        mapping=version.columns or None,
        against_mapping=None if other is None else compared_columns(context, caller, version, other),
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
    """A finding of a kept audit by its place, from 1 on.

    Raises:
        NotFoundError: The audit has no finding of this number, or was not made yet.
    """
    findings = [] if audited.answer is None else audited.answer["findings"]
    if not 1 <= number <= len(findings):
        raise NotFoundError(
            f"no finding {number}",
            expected=f"one of the {len(findings)} findings of this audit" if findings else "a finished audit",
            do="see the audit of the version, or run it again",
        )
    found: dict[str, Any] = findings[number - 1]
    return found


def _grade(version: DatasetVersion) -> Subject:
    """CachedResult next to the audit itself, which may be large, for lists of many datasets."""
    return Subject(version.sha256, "grade", {"suffix": files.suffix_of(version.filename)} | columns_key(version))


def columns_key(version: DatasetVersion) -> dict[str, Any]:
    """What chosen columns add to the key of a result: nothing where none are, so that earlier results stay valid."""
    return {"columns": version.columns} if version.columns else {}


def compared_columns(
    context: Context, caller: Caller, version: DatasetVersion, other: DatasetVersion
) -> dict[str, str]:
    """The columns of a version that another one is compared with: its own, else those of the other where it has them.

    Raises:
        NotFoundError: The project no longer has the file.
    """
    file = files.get_file(context, caller.project_id, other.file_id)
    return other.columns or fitting_columns(context, caller, version, file)


def compared_key(
    context: Context, caller: Caller, version: DatasetVersion, other: DatasetVersion | None, name: str
) -> list[Any] | None:
    """What a comparison with another version adds to the key of a result.

    Args:
        context: The home.
        caller: Whose project it is.
        version: The version.
        other: What it is compared with; None for nothing.
        name: What of the name of its file counts.
    """
    if other is None:
        return None
    columns = compared_columns(context, caller, version, other)
    # As before where the file shows them by itself, or both have the same: earlier results stay valid.
    return [other.sha256, name, *([] if columns == version.columns else [columns])]


def _audit_subject(
    context: Context, caller: Caller, version: DatasetVersion, settings: AuditSettings
) -> tuple[Subject, DatasetVersion | None]:
    other = get_version(context, caller, settings.against) if settings.against else None
    given = {
        # Findings name rows by the uploaded file, so the same content under another name is another audit.
        "filename": version.filename,
        "against": compared_key(context, caller, version, other, "" if other is None else other.filename),
        "model": [settings.model, model_digest(context, settings.model)] if settings.model else None,
    } | columns_key(version)
    return Subject(version.sha256, "audit", given), other


def difference(
    context: Context,
    caller: Caller,
    old: DatasetVersion,
    new: DatasetVersion,
    *,
    key: str | None = None,
    again: bool = False,
) -> CachedResult:
    """The changes from one version to another, as `analysis.diff_answer` returns them; started on first request.

    Args:
        context: The home.
        caller: Whose project it is.
        old: The version before.
        new: The version after.
        key: The field that names a row; None takes its id, else its prompt, else its place.
        again: Start again where it failed.

    Raises:
        NotFoundError: The file of a version is gone.
        RequestError: A version against itself.
    """
    if old.number == new.number:
        raise RequestError(
            f"version {old.number} against itself", expected="two versions", do="choose two different versions"
        )
    before, after = (files.get_file(context, caller.project_id, one.file_id) for one in (old, new))
    # The suffix decides how bytes are parsed, so it belongs to the cache key with the digests.
    suffixes = [files.suffix_of(file.filename) for file in (before, after)]
    given = {"old": before.sha256, "suffixes": suffixes, "key": key} | columns_key(new)
    subject = Subject(after.sha256, "diff", given)
    found = cached_result(context, subject)
    if found.state != "unasked" and not (again and found.state == "failed"):
        return found
    return start_computation(
        context,
        subject,
        lambda: answer_about(
            context,
            caller.project_id,
            "diff",
            after.file_id,
            {"key": key, "columns": new.columns},
            against=before.file_id,
        ),
    )


def map_of(context: Context, caller: Caller, version: DatasetVersion, *, again: bool = False) -> CachedResult:
    """The map, as `dataset_questions.map_answer` returns it; begun at the first view.

    Args:
        context: The home.
        caller: Whose project it is.
        version: The version.
        again: Start it again where it failed.

    Raises:
        NotFoundError: The project no longer has the file.
    """
    file = files.get_file(context, caller.project_id, version.file_id)
    # The same rows in two datasets share one map.
    subject = Subject(file.sha256, "map", {"suffix": files.suffix_of(file.filename)} | columns_key(version))
    found = cached_result(context, subject)
    if found.state == "unasked" or (again and found.state == "failed"):
        return start_computation(
            context,
            subject,
            lambda: answer_about(context, caller.project_id, "map", file.file_id, {"columns": version.columns}),
        )
    return found


def rows_of_group(drawn: dict[str, Any], group: int) -> list[dict[str, Any]]:
    """The points of a group in the order of the file; -1: those of none."""
    return [point for point in drawn["points"] if point["group"] == group]


TEMPLATES: Final = ("auto", "chat", "plain")


def tokens_state(context: Context, version: DatasetVersion, model: str, template: str) -> CachedResult:
    """The state of the token count of a version."""
    return cached_result(context, _tokens_subject(context, version, model, template))


def begin_tokens(context: Context, caller: Caller, version: DatasetVersion, model: str, template: str) -> CachedResult:
    """Find out the tokens of a version.

    Raises:
        RequestError: A model that is not on this machine, or a template.
    """
    check_is_local(context, model)
    if template not in TEMPLATES:
        raise RequestError(
            f"the template {template[:100]!r}", expected=f"one of {', '.join(TEMPLATES)}", do="choose one of these"
        )

    def answer() -> dict[str, object]:
        given = {"template": template, "columns": version.columns}
        return answer_about(context, caller.project_id, "tokens", version.file_id, given, model=model)

    return start_computation(context, _tokens_subject(context, version, model, template), answer)


def _tokens_subject(context: Context, version: DatasetVersion, model: str, template: str) -> Subject:
    # The digest, not the name: a model that was pulled again under its name may have another tokenizer.
    given = {"suffix": files.suffix_of(version.filename), "model": model_digest(context, model), "template": template}
    return Subject(version.sha256, "tokens", given | columns_key(version))
