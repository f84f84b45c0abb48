"""Studies and their trials. A trial is written before anything is done for it, so that none is lost or begun twice."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, insert, select, update

from luthier.core.errors import NotFoundError
from luthier.core.text.suggest import suggest_ids
from luthier.core.workflows.study import Study, Trial
from luthier.platform.db.database import Database
from luthier.platform.db.tables import studies, trials


class StudyStore:
    """The studies of all projects. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, study: Study, project_id: str) -> None:
        """Add a study."""
        values = {"study_id": study.study_id, "project_id": project_id, "document": study.model_dump_json()}
        with self._database.write() as connection:
            now = self._database.clock(connection)
            connection.execute(insert(studies).values(**values, created_at=now))

    def save(self, study: Study) -> None:
        """Write down how far a study is. Raises NotFoundError."""
        is_it = studies.c.study_id == study.study_id
        with self._database.write() as connection:
            changed = connection.execute(update(studies).where(is_it).values(document=study.model_dump_json()))
            if changed.rowcount == 0:
                raise self._unknown(study.study_id)

    def get(self, study_id: str, project_id: str | None = None) -> Study:
        """A study. Raises NotFoundError, naming the nearest ids; also for another project's."""
        query = select(studies.c.document).where(studies.c.study_id == study_id)
        if project_id is not None:
            query = query.where(studies.c.project_id == project_id)
        with self._database.read() as connection:
            document = connection.execute(query).scalar()
        if document is None:
            raise self._unknown(study_id, project_id)
        return Study.model_validate_json(document)

    def list(self, project_id: str) -> Sequence[Study]:
        """A project's studies, newest first."""
        query = select(studies.c.document).where(studies.c.project_id == project_id).order_by(studies.c.number.desc())
        with self._database.read() as connection:
            return [Study.model_validate_json(document) for document in connection.execute(query).scalars()]

    def put_trial(self, study_id: str, trial: Trial) -> None:
        """Write a trial, new or changed."""
        is_it = (trials.c.study_id == study_id) & (trials.c.trial == trial.number)
        document = trial.model_dump_json()
        with self._database.write() as connection:
            if connection.execute(update(trials).where(is_it).values(document=document)).rowcount == 0:
                connection.execute(insert(trials).values(study_id=study_id, trial=trial.number, document=document))

    def trials(self, study_id: str) -> Sequence[Trial]:
        """All trials of a study, in the order of their numbers."""
        query = select(trials.c.document).where(trials.c.study_id == study_id).order_by(trials.c.trial)
        with self._database.read() as connection:
            return [Trial.model_validate_json(document) for document in connection.execute(query).scalars()]

    def remove(self, study_id: str) -> None:
        """Forget a study and its trials; their runs stay. Raises NotFoundError."""
        with self._database.write() as connection:
            if connection.execute(delete(studies).where(studies.c.study_id == study_id)).rowcount == 0:
                raise self._unknown(study_id)

    def _unknown(self, study_id: str, project_id: str | None = None) -> NotFoundError:
        newest_first = select(studies.c.study_id).order_by(studies.c.number.desc())
        if project_id is not None:
            newest_first = newest_first.where(studies.c.project_id == project_id)
        with self._database.read() as connection:
            known = connection.execute(newest_first).scalars().all()
        return NotFoundError(
            f"no study {study_id!r}; {suggest_ids(study_id, known)}",
            expected="the id of a study in this home",
            do="see `luthier studies list`",
        )
