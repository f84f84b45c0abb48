"""Studies and their trials. A trial is written before anything is done for it, so that none is lost or begun twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select

from luthier.core.workflows.study import Study, Trial
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import studies, trials

_STUDIES: Final = RecordTable(
    studies,
    Study,
    key="study_id",
    given=("created_at",),
    missing=Missing("no study {key!r}", "the id of a study in this home", "see `luthier studies list`", suggests=True),
)
_TRIALS: Final = RecordTable(trials, Trial, renamed={"trial": "number"})


class StudyStore(Store):
    """The studies of all projects."""

    def create(self, study: Study, project_id: str) -> None:
        """Add a study."""
        self._insert(_STUDIES, study, project_id=project_id, created_at=self._database.now)

    def save(self, study: Study) -> None:
        """Write down how far a study is.

        Raises:
            NotFoundError: There is no such study.
        """
        self._save(_STUDIES, study)

    def get(self, study_id: str, project_id: str | None = None) -> Study:
        """A study.

        Raises:
            NotFoundError: There is no such study, or it is of another project; the message names the nearest ids.
        """
        return self._get(_STUDIES, study_id, project_id=project_id)

    def project_of(self, study_id: str) -> str | None:
        """The project of a study; None where there is no such study."""
        owner: str | None = self._scalar(select(studies.c.project_id).where(studies.c.study_id == study_id))
        return owner

    def list(self, project_id: str) -> Sequence[Study]:
        """A project's studies, newest first."""
        return self._list(_STUDIES, project_id=project_id)

    def put_trial(self, study_id: str, trial: Trial) -> None:
        """Write a trial, new or changed."""
        with self._write() as connection:
            _TRIALS.put(connection, trial, study_id=study_id)

    def trials(self, study_id: str) -> Sequence[Trial]:
        """All trials of a study, in the order of their numbers."""
        return self._list(_TRIALS, study_id=study_id, order=[trials.c.trial])

    def trials_of(self, study_ids: Sequence[str]) -> dict[str, Sequence[Trial]]:
        """The trials of each of these studies, in the order of their numbers, in one query."""
        if not study_ids:
            return {}
        its = trials.c.study_id
        rows = self._rows(select(trials).where(its.in_(study_ids)).order_by(its, trials.c.trial))
        return {one: [_TRIALS.of_row(row) for row in rows if row["study_id"] == one] for one in study_ids}

    def remove(self, study_id: str) -> None:
        """Forget a study and its trials; their runs stay.

        Raises:
            NotFoundError: There is no such study.
        """
        self._delete(_STUDIES, study_id)
