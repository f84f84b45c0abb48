"""Evaluations: whole documents, found by their id or by the run that they judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import Evaluation, EvaluationOverview
from luthier.core.text.suggest import suggest_ids
from luthier.platform.db.cache import LRUCache
from luthier.platform.db.database import Database
from luthier.platform.db.tables import evaluations, jobs, runs

_MAX_CHARACTERS: Final = 32_000_000
_MAX_OVERVIEWS: Final = 5000


class EvaluationStore:
    """What the database knows of evaluations. They are never changed; deleting a run deletes those of the run."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: LRUCache[Evaluation] = LRUCache(_MAX_CHARACTERS)
        self._overviews: LRUCache[EvaluationOverview] = LRUCache(_MAX_OVERVIEWS)

    def save(self, evaluation: Evaluation) -> None:
        """Add an evaluation. Raises ConflictError (id taken) and NotFoundError (no such run)."""
        row = {
            "evaluation_id": evaluation.evaluation_id,
            "run_id": evaluation.run_id,
            "document": evaluation.model_dump_json(),
        }
        try:
            with self._database.write() as connection:
                connection.execute(insert(evaluations).values(**row))
        except IntegrityError as error:
            raise self._refusal(evaluation) from error

    def get(self, evaluation_id: str) -> Evaluation:
        """One evaluation. Raises NotFoundError, naming the nearest ids."""
        query = select(evaluations.c.document).where(evaluations.c.evaluation_id == evaluation_id)
        newest_first = select(evaluations.c.evaluation_id).order_by(evaluations.c.number.desc())
        with self._database.read() as connection:
            document = connection.execute(query).scalar()
            if document is None:
                known = connection.execute(newest_first).scalars().all()
                raise NotFoundError(
                    f"no evaluation {evaluation_id!r}; {suggest_ids(evaluation_id, known)}",
                    expected="the id of an evaluation in this home",
                    do="take the evaluation_id that `luthier runs show RUN --json` or `luthier eval --json` gave",
                )
        return Evaluation.model_validate_json(document)

    def read(self, evaluation_id: str) -> Evaluation:
        """As `get`, but one that was read a moment ago is not read again: for whoever pages through its samples."""
        query = select(evaluations.c.number).where(evaluations.c.evaluation_id == evaluation_id)
        with self._database.read() as connection:
            is_there = connection.execute(query).first() is not None
        found = self._kept.find(evaluation_id) if is_there else None
        if found is None:
            found = self.get(evaluation_id)
            num_characters = sum(
                len(s.output) + len(s.prompt) + 500 for system in found.systems for s in system.samples
            )
            self._kept.keep(evaluation_id, found, num_characters)
        return found

    def overviews(self, project_id: str, *, limit: int, after: str | None = None) -> Sequence[EvaluationOverview]:
        """What lists tell of the evaluations of a project, newest first; those made before the evaluation `after`.

        Those without a run belong to the project `default`, as their runs would.
        """
        owner = func.coalesce(jobs.c.project_id, DEFAULT_PROJECT)
        with_jobs = evaluations.outerjoin(jobs, jobs.c.run_id == evaluations.c.run_id)
        query = select(evaluations.c.evaluation_id).select_from(with_jobs).where(owner == project_id)
        if after is not None:
            is_it = evaluations.c.evaluation_id == after
            query = query.where(evaluations.c.number < select(evaluations.c.number).where(is_it).scalar_subquery())
        with self._database.read() as connection:
            ids = connection.execute(query.order_by(evaluations.c.number.desc()).limit(limit)).scalars().all()
        found = {one: known for one in ids if (known := self._overviews.find(one)) is not None}
        for missing in [one for one in ids if one not in found]:
            with self._database.read() as connection:  # one after another: whole documents are large
                is_it = evaluations.c.evaluation_id == missing
                document = connection.execute(select(evaluations.c.document).where(is_it)).scalar()
            if document is not None:
                overview = EvaluationOverview.of(Evaluation.model_validate_json(document))
                found[missing] = self._overviews.keep(missing, overview)
        return [found[one] for one in ids if one in found]

    def list(self, run_id: str | None = None, limit: int | None = None) -> list[Evaluation]:
        """Evaluations, newest first: of one run, or of all where `run_id` is None; at most `limit`."""
        query = select(evaluations.c.document).order_by(evaluations.c.number.desc()).limit(limit)
        if run_id is not None:
            query = query.where(evaluations.c.run_id == run_id)
        with self._database.read() as connection:
            return [Evaluation.model_validate_json(document) for document in connection.execute(query).scalars()]

    def newest_of(self, project_id: str, *, limit: int) -> Sequence[str]:
        """The ids of the newest evaluations of a project, newest first. One without a run is that of `default`."""
        owner = func.coalesce(jobs.c.project_id, DEFAULT_PROJECT)
        query = (
            select(evaluations.c.evaluation_id)
            .select_from(evaluations.outerjoin(jobs, jobs.c.run_id == evaluations.c.run_id))
            .where(owner == project_id)
            .order_by(evaluations.c.number.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return connection.execute(query).scalars().all()

    def _refusal(self, evaluation: Evaluation) -> ConflictError | NotFoundError:
        with self._database.read() as connection:
            known = connection.execute(select(runs.c.run_id).order_by(runs.c.number.desc())).scalars().all()
        if evaluation.run_id is not None and evaluation.run_id not in known:
            return NotFoundError(
                f"evaluation {evaluation.evaluation_id} judges run {evaluation.run_id!r}, which is not there; "
                f"{suggest_ids(evaluation.run_id, known)}",
                expected="the id of a run in this home, or none",
                do="check whether the run was removed in the meantime",
            )
        return ConflictError(
            f"evaluation {evaluation.evaluation_id} exists already",
            expected="a new id",
            do="make one with new_id('eval')",
        )
