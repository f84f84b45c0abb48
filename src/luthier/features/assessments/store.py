"""Assessments: results of suites, safety checks, calibrations and showdowns, as whole documents that never change."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.text.suggest import suggest_ids
from luthier.platform.db.database import Database
from luthier.platform.db.tables import assessments

AssessmentKind = Literal["suite", "safety", "calibration", "showdown"]
Document = TypeVar("Document", bound=BaseModel)


class AssessmentStore:
    """The assessments of all projects, each kind with its own spec, which the caller names."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        values = {
            "assessment_id": assessment_id,
            "project_id": project_id,
            "kind": kind,
            "subject": subject,
            "run_id": run_id,
            "document": document.model_dump_json(),
        }
        try:
            with self._database.write() as connection:
                now = self._database.clock(connection)
                connection.execute(insert(assessments).values(**values, created_at=now))
        except IntegrityError as error:
            raise ConflictError(
                f"{kind} {assessment_id} is there already, or run {run_id} is not",
                expected="a new id, and a run of this home",
                do="check whether the run was removed in the meantime",
            ) from error

    def get(self, kind: AssessmentKind, spec: type[Document], project_id: str, assessment_id: str) -> Document:
        """One of a project's. Raises NotFoundError, naming the nearest ids."""
        of_kind = (assessments.c.kind == kind) & (assessments.c.project_id == project_id)
        query = select(assessments.c.document).where(of_kind, assessments.c.assessment_id == assessment_id)
        with self._database.read() as connection:
            document = connection.execute(query).scalar()
            if document is None:
                newest = select(assessments.c.assessment_id).where(of_kind).order_by(assessments.c.number.desc())
                known = connection.execute(newest).scalars().all()
                raise NotFoundError(
                    f"no {kind} result {assessment_id!r}; {suggest_ids(assessment_id, known)}",
                    expected="the id of one in this project",
                    do="take the id that the command gave, or see the list of evaluations",
                )
        return spec.model_validate_json(document)

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
        query = select(assessments.c.document).where(assessments.c.kind == kind, assessments.c.project_id == project_id)
        if subject is not None:
            query = query.where(assessments.c.subject == subject)
        with self._database.read() as connection:
            documents = connection.execute(query.order_by(assessments.c.number.desc()).limit(limit)).scalars()
            return [spec.model_validate_json(document) for document in documents]
