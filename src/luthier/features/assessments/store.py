"""Assessments: results of suites, safety checks, calibrations and showdowns, as whole documents that never change."""

from __future__ import annotations

import json
import re
from typing import Final, Literal, TypeVar

from pydantic import BaseModel
from sqlalchemy import func, select

from luthier.core.errors import ConflictError
from luthier.core.ids import fitted
from luthier.core.results.suite import SuiteResult
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import assessments

AssessmentKind = Literal["suite", "safety", "calibration", "showdown", "formats"]
Document = TypeVar("Document", bound=BaseModel)
_BEGINNING: Final = 2_000
"""Characters of a document in which the name of its suite is: only its id and its time come before."""
_SUITE: Final = re.compile(r'"suite":("(?:[^"\\]|\\.)*")')
_SUBJECT_CHARACTERS: Final = 255


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


def _fitted(subject: str | None) -> str | None:
    """As the column has it: the folder of a model may have a name of any length."""
    return None if subject is None else fitted(subject, _SUBJECT_CHARACTERS)


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
        """Add a document, which never changes.

        Args:
            kind: Of assessment.
            assessment_id: A new id.
            document: The result, an instance of the kind's spec.
            project_id: The project that it belongs to.
            subject: The run or model that it is about, or the judge.
            run_id: The run with which it is deleted; None where it belongs to none.

        Raises:
            ConflictError: The id is taken, or the run is gone.
        """
        conflict = ConflictError(
            f"{kind} {assessment_id} already exists, or run {run_id} is not",
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
                subject=_fitted(subject),
                run_id=run_id,
                created_at=self._database.clock(connection),
            )

    def get(self, kind: AssessmentKind, spec: type[Document], project_id: str, assessment_id: str) -> Document:
        """A document of a project.

        Args:
            kind: Of assessment.
            spec: The class of the kind's documents.
            project_id: The project; documents of others are not found.
            assessment_id: The id.

        Raises:
            NotFoundError: The project has no such document; the error names the nearest ids.
        """
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
        """Documents of a project, newest first.

        Args:
            kind: Of assessment.
            spec: The class of the kind's documents.
            project_id: The project.
            subject: Only those about this run, model or judge; None for all.
            limit: The most documents; None for all.
        """
        return self._list(_of(kind, spec), kind=kind, project_id=project_id, subject=_fitted(subject), limit=limit)

    def suites(self, project_id: str, subject: str) -> dict[str, str]:
        """The id of the newest result of each suite, by the suite's name, newest first.

        Results are large, and a scheduled suite has hundreds of them: of each only the beginning is read.

        Args:
            project_id: The project.
            subject: The run or model that they are about.
        """
        where = _of("suite", SuiteResult).where(kind="suite", project_id=project_id, subject=_fitted(subject))
        columns = assessments.c
        query = select(columns.assessment_id, func.substr(columns.document, 1, _BEGINNING).label("beginning"))
        found: dict[str, str] = {}
        for row in self._rows(query.where(*where).order_by(columns.number.desc())):
            name = _SUITE.search(row["beginning"])
            # One whose name is not found is not left out: it counts as a suite by itself.
            found.setdefault(json.loads(name[1]) if name else row["assessment_id"], row["assessment_id"])
        return found
