"""The store of evaluations: whole documents, by id or by the evaluated run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BindParameter, ColumnElement, Select, bindparam, func, select
from sqlalchemy.exc import IntegrityError

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.text.suggest import suggest_ids
from luthier.platform.db.database import Database
from luthier.platform.db.run_values import of_evaluation, put_evaluation
from luthier.platform.db.store import LRUCache, Missing, RecordTable, Store
from luthier.platform.db.stored_texts import FORGOTTEN_KIND
from luthier.platform.db.tables import evaluations, jobs, runs, watches

if TYPE_CHECKING:
    from luthier.core.results.evaluation_overview import EvaluationOverview

_MAX_CHARACTERS: Final = 32_000_000
_MAX_OVERVIEWS: Final = 5000
_MAX_RESULTS: Final = 500
_WITHOUT_SAMPLES: Final[Any] = {"systems": {"__all__": {"samples"}}}
_EVALUATIONS: Final = RecordTable(
    evaluations,
    Evaluation,
    key="evaluation_id",
    missing=Missing(
        "no evaluation {key!r}",
        "the id of an evaluation in this home",
        "take the evaluation_id that `luthier runs show RUN --json` or `luthier eval --json` gave",
        suggests=True,
    ),
)


class EvaluationStore(Store):
    """Stored evaluations. They change where texts are forgotten, and never else; those of a run go with it."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._kept: LRUCache[Evaluation] = LRUCache(_MAX_CHARACTERS)
        self._overviews: LRUCache[EvaluationOverview] = LRUCache(_MAX_OVERVIEWS)
        self._results: LRUCache[Evaluation] = LRUCache(_MAX_RESULTS)

    def save(self, evaluation: Evaluation, *, project_id: str | None = None) -> None:
        """Add an evaluation.

        Args:
            evaluation: Of a run or of models alone.
            project_id: Of one without a run; None for `default`.

        Raises:
            ConflictError: The id is taken.
            NotFoundError: There is no such run.
        """
        try:
            with self._write() as connection:
                own = project_id if evaluation.run_id is None else None
                _EVALUATIONS.insert(connection, evaluation, project_id=own)
                if evaluation.run_id is not None:
                    values = of_evaluation(evaluation.model_dump(mode="json", exclude=_WITHOUT_SAMPLES))
                    put_evaluation(connection, evaluation.run_id, values)
        except IntegrityError as error:
            raise self._refusal(evaluation) from error

    def project_of(self, evaluation_id: str) -> str | None:
        """The project of an evaluation: that of its run, its own, or `default`; None where there is none."""
        query = select(_OWNER).select_from(_WITH_RUNS).where(evaluations.c.evaluation_id == evaluation_id)
        owner: str | None = self._scalar(query)
        return owner

    def get(self, evaluation_id: str) -> Evaluation:
        """One evaluation. Raises NotFoundError with similar ids."""
        return self._get(_EVALUATIONS, evaluation_id)

    def read(self, evaluation_id: str) -> Evaluation:
        """Like `get`, with a cache for paging through samples."""
        # A fast query first: the cache must not return an evaluation that was deleted with its run, or has texts that
        # were forgotten since.
        query = select(func.coalesce(_LAST_FORGOTTEN, "")).select_from(evaluations)
        forgotten = self._scalar(query.where(evaluations.c.evaluation_id == evaluation_id))
        key = f"{evaluation_id} {forgotten}"
        found = None if forgotten is None else self._kept.find(key)
        if found is None:
            found = self.get(evaluation_id)
            # The cache is bounded by characters; 500 represents the other fields of a sample.
            num_characters = sum(
                len(s.output) + len(s.prompt) + 500 for system in found.systems for s in system.samples
            )
            self._kept.keep(key, found, num_characters)
        return found

    def overviews(self, project_id: str, *, limit: int, after: str | None = None) -> Sequence[EvaluationOverview]:
        """List entries of a project's evaluations, newest first.

        Those without a run and without their own project belong to the project `default`, as their runs would.

        Args:
            project_id: The project.
            limit: The most entries.
            after: Only evaluations that were made before this one; None begins at the newest.
        """
        from luthier.core.results.evaluation_overview import EvaluationOverview

        where: list[ColumnElement[bool]] = []
        if after is not None:
            is_it = evaluations.c.evaluation_id == after
            # By insertion number: ids of one second have no order.
            where = [evaluations.c.number < select(evaluations.c.number).where(is_it).scalar_subquery()]
        ids = self._scalars(_newest_of(project_id, limit).where(*where))
        found = {one: known for one in ids if (known := self._overviews.find(one)) is not None}
        for missing in [one for one in ids if one not in found]:
            evaluation = self._find(_EVALUATIONS, evaluation_id=missing)  # one at a time: whole documents are large
            if evaluation is not None:
                found[missing] = self._overviews.keep(missing, EvaluationOverview.of(evaluation))
        return [found[one] for one in ids if one in found]

    def list(self, run_id: str | None = None, limit: int | None = None) -> list[Evaluation]:
        """Evaluations, newest first: of one run, or of all if `run_id` is None; at most `limit`."""
        return self._list(_EVALUATIONS, run_id=run_id, limit=limit)

    def of_model(self, name: str) -> Evaluation | None:
        """The newest evaluation of a model that is no run's outcome, such as a checkpoint; None where there is none.

        Args:
            name: What the evaluated system is called there.
        """
        # The document is searched for the name, and read only where it is in it: whole documents are large.
        written = f'"name":{json.dumps(name, ensure_ascii=False)}'
        holds_it = evaluations.c.document.contains(written, autoescape=True)
        query = select(evaluations.c.evaluation_id).where(evaluations.c.run_id.is_(None), holds_it)
        for evaluation_id in self._scalars(query.order_by(evaluations.c.number.desc())):
            found = self._find(_EVALUATIONS, evaluation_id=evaluation_id)
            if found is not None and found.systems[-1].name == name:
                return found
        return None

    def num_runs_on(self, held_out_sha256: str, *, project_id: str, other_than: str) -> int:
        """How many runs of a project were evaluated on a file of held-out rows.

        Args:
            held_out_sha256: The digest of the file.
            project_id: The project.
            other_than: The id of a run that does not count.
        """
        # The document is searched and not read, as in `of_model`.
        is_on = evaluations.c.document.contains(f'"held_out_sha256":"{held_out_sha256}"', autoescape=True)
        is_other = evaluations.c.run_id != other_than
        query = select(func.count(evaluations.c.run_id.distinct())).select_from(_WITH_RUNS).where(is_on, is_other)
        found: int = self._scalar(query.where(_OWNER == project_id))  # noqa: SIM300 - a column
        return found

    def newest_of_runs(self, run_ids: Sequence[str]) -> dict[str, Evaluation]:
        """The newest evaluation of each run that was evaluated, without samples, by the id of the run.

        One query for their ids; documents are read once and cached without their samples.
        """
        if not run_ids:
            return {}
        # Read with each call: the cache must not return an evaluation that was deleted with its run.
        columns = (evaluations.c.run_id, evaluations.c.evaluation_id, _LAST_FORGOTTEN.label("forgotten"))
        query = select(*columns).where(evaluations.c.run_id.in_(run_ids))
        newest = {row["run_id"]: row for row in self._rows(query.order_by(evaluations.c.number))}
        found = {run_id: self._result(row["evaluation_id"], row["forgotten"]) for run_id, row in newest.items()}
        return {run_id: one for run_id, one in found.items() if one is not None}

    def newest_of(self, project_id: str, *, limit: int) -> Sequence[str]:
        """The ids of the newest evaluations of a project, newest first; see `overviews`."""
        return self._scalars(_NEWEST, {"its_project": project_id, "its_limit": limit})

    def _result(self, evaluation_id: str, forgotten: str | None) -> Evaluation | None:
        """An evaluation without samples; None where it was deleted in the meantime.

        Args:
            evaluation_id: Its id.
            forgotten: When texts were forgotten last.
        """
        key = f"{evaluation_id} {forgotten}"
        found = self._results.find(key)
        if found is None and (whole := self._find(_EVALUATIONS, evaluation_id=evaluation_id)) is not None:
            systems = tuple(system.model_copy(update={"samples": ()}) for system in whole.systems)
            found = self._results.keep(key, whole.model_copy(update={"systems": systems}))
        return found

    def _refusal(self, evaluation: Evaluation) -> ConflictError | NotFoundError:
        # Queried after the failed insert, to distinguish the two constraints: driver errors differ by database.
        known = self._scalars(select(runs.c.run_id).order_by(runs.c.number.desc()))
        if evaluation.run_id is not None and evaluation.run_id not in known:
            return NotFoundError(
                f"evaluation {evaluation.evaluation_id} evaluates run {evaluation.run_id!r}, which does not exist; "
                f"{suggest_ids(evaluation.run_id, known)}",
                expected="the id of a run in this home, or none",
                do="check whether the run was removed in the meantime",
            )
        return ConflictError(
            f"evaluation {evaluation.evaluation_id} exists already",
            expected="a new id",
            do="make one with new_id('eval')",
        )


_LAST_FORGOTTEN: Final = (
    select(watches.c.document)
    .where(watches.c.project_id == DEFAULT_PROJECT, watches.c.kind == FORGOTTEN_KIND, watches.c.name == "")
    .scalar_subquery()
)
# An evaluation has the project of its run: of the run's job, or the run's own. Runs by commands have neither.
_WITH_RUNS: Final = evaluations.outerjoin(runs, runs.c.run_id == evaluations.c.run_id).outerjoin(
    jobs, jobs.c.run_id == evaluations.c.run_id
)
_OWNER: Final = func.coalesce(jobs.c.project_id, runs.c.project_id, evaluations.c.project_id, DEFAULT_PROJECT)


def _newest_of(project_id: str | BindParameter[str], limit: int | BindParameter[int]) -> Select[tuple[str]]:
    """The query for ids of a project's evaluations."""
    return (
        select(evaluations.c.evaluation_id)
        .select_from(_WITH_RUNS)
        .where(_OWNER == project_id)  # noqa: SIM300 - a column
        .order_by(evaluations.c.number.desc())
        .limit(limit)
    )


# Built once: pages ask for it until the first verdict.
_NEWEST: Final = _newest_of(bindparam("its_project"), bindparam("its_limit"))
