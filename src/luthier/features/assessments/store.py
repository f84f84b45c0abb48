"""Assessments: results of suites, safety checks, calibrations and showdowns, as whole documents that never change."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel

from luthier.core.errors import ConflictError
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import assessments

AssessmentKind = Literal["suite", "safety", "calibration", "showdown"]
Document = TypeVar("Document", bound=BaseModel)


def _of(kind: AssessmentKind, spec: type[Document]) -> RecordTable[Document]:
    """The assessments of one kind, each with its own spec."""
    missing = Missing(
        f"no {kind} result {{key!r}}",
        "the id of one in this project",
        "take the id that the command gave, or see the list of evaluations",
        suggests=True,
    )
    # The documents have other fields than the table, so every column but the document is given by the caller.
    given = [column.name for column in assessments.columns if column.name != "document"]
    return RecordTable(assessments, spec, key="assessment_id", given=given, missing=missing)


class AssessmentStore(Store):
    """The assessments of all projects, each kind with its own spec, which the caller names."""

    def save(
        self,
        kind: AssessmentKind,
        assessment_id: str,
        document: BaseModel,
        *,
        project_id: str,
        subject: str,
        run_id: str | None = None,
    ) -> None:
        """Add one. subject: the run or model that it is about, or the judge. Raises ConflictError (taken, run gone)."""
        conflict = ConflictError(
            f"{kind} {assessment_id} is there already, or run {run_id} is not",
            expected="a new id, and a run of this home",
            do="check whether the run was removed in the meantime",
        )
        with self._write(conflict) as connection:
            _of(kind, type(document)).insert(
                connection,
                document,
                assessment_id=assessment_id,
                project_id=project_id,
                kind=kind,
                subject=subject,
                run_id=run_id,
                created_at=self._database.clock(connection),
            )

    def get(self, kind: AssessmentKind, spec: type[Document], project_id: str, assessment_id: str) -> Document:
        """One of a project's. Raises NotFoundError, naming the nearest ids."""
        return self._get(_of(kind, spec), assessment_id, kind=kind, project_id=project_id)

    def list(
        self,
        kind: AssessmentKind,
        spec: type[Document],
        project_id: str,
        *,
        subject: str | None = None,
        limit: int | None = None,
    ) -> list[Document]:
        """A project's, newest first; those about one subject where it is named."""
        return self._list(_of(kind, spec), kind=kind, project_id=project_id, subject=subject, limit=limit)
