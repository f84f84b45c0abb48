"""Evals, their runs and graded items of all projects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, insert, or_, select

from luthier.features.evals_api.records import Eval, EvalRun, EvalUpdate, OutputItem, RunTotals
from luthier.platform.db.database import Database
from luthier.platform.db.store import DeletedPositions, Missing, RecordTable, Store, not_in_list
from luthier.platform.db.tables import eval_output_items, eval_runs, evals, jobs
from luthier.platform.jobs.records import Job, JobStatus
from luthier.platform.jobs.rows import add_job, job_of

Order = Literal["asc", "desc"]
RunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]
# Statuses of jobs are finer than those of OpenAI's runs; each job status belongs to exactly one of these.
_JOB_STATUSES: Final[dict[RunStatus, tuple[JobStatus, ...]]] = {
    "queued": ("queued", "paused"),
    "in_progress": ("running",),
    "completed": ("succeeded",),
    "canceled": ("cancelled",),
    "failed": ("failed",),
}
_EVALS: Final = RecordTable(
    evals,
    Eval,
    key="eval_id",
    missing=Missing("no eval {key!r}", "the id of an eval of this project", "list them: GET /v1/evals"),
)
_RUNS: Final = RecordTable(
    eval_runs,
    EvalRun,
    key="eval_run_id",
    given=("totals",),
    missing=Missing("no run {key!r} of this eval", "the id of a run of the eval", "list them: GET /v1/evals/ID/runs"),
)
_ITEMS: Final = RecordTable(
    eval_output_items,
    OutputItem,
    key="item_id",
    missing=Missing("no output item {key!r} of this run", "the id of an output item of the run", "list them"),
)
_EXPECTED: Final = "the id of an item in it"
_WITH_JOB: Final = eval_runs.join(jobs, jobs.c.job_id == eval_runs.c.job_id)
_RUN_COLUMNS: Final = (eval_runs.c.document, eval_runs.c.totals)
_RUN_PLACES: Final = select(eval_runs.c.eval_id, eval_runs.c.number)


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with the job that carries it out.

    Attributes:
        run: The run.
        job: Its job.
    """

    run: EvalRun
    job: Job

    @property
    def status(self) -> RunStatus:
        """OpenAI's status of the run."""
        return next(name for name, own in _JOB_STATUSES.items() if self.job.status in own)


class EvalStore(Store):
    """The evals of all projects. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._eval_places: DeletedPositions[tuple[float, float, int]] = DeletedPositions()
        self._run_places: DeletedPositions[int] = DeletedPositions()

    def add(self, one: Eval) -> Eval:
        """Keep a new eval."""
        with self._write() as connection:
            now = self._database.clock(connection)
            one = one.model_copy(update={"created_at": now, "updated_at": now})
            return _EVALS.insert(connection, one)

    def get(self, project_id: str, eval_id: str) -> Eval:
        """One eval.

        Raises:
            NotFoundError: The project has no such eval.
        """
        return self._get(_EVALS, eval_id, project_id=project_id)

    def change(self, project_id: str, eval_id: str, changes: EvalUpdate) -> Eval:
        """Change an eval.

        Args:
            project_id: The project of the eval.
            eval_id: The eval.
            changes: Fields that are not set stay.

        Raises:
            NotFoundError: The project has no such eval.
        """
        with self._write() as connection:
            # Locked until the commit: two changes of one eval would otherwise each write the other's old fields back.
            one = _EVALS.get(connection, eval_id, is_locked=True, project_id=project_id)
            given = {name: getattr(changes, name) for name in changes.model_fields_set}
            if given.get("name", "") is None:
                given["name"] = ""
            one = one.model_copy(update={**given, "updated_at": self._database.clock(connection)})
            _EVALS.change(connection, eval_id, _EVALS.row(one), project_id=project_id)
            return one

    def remove(self, project_id: str, eval_id: str) -> None:
        """Delete an eval with its runs.

        Raises:
            NotFoundError: There is no such eval.
        """
        with self._write() as connection:
            place = _place(connection, project_id, eval_id)
            _EVALS.remove(connection, eval_id, project_id=project_id)
        self._eval_places.keep(project_id, eval_id, place)

    def add_run(self, run: EvalRun, job: Job) -> RunView:
        """Store a run and queue its job: both or neither.

        Args:
            run: Its time is set here.
            job: Of the run.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            run = run.model_copy(update={"created_at": now})
            made = add_job(connection, now, job)
            _RUNS.insert(connection, run, totals=run.totals.model_dump_json())
            return RunView(run, made)

    def run(self, project_id: str, eval_id: str, eval_run_id: str) -> RunView:
        """One run of an eval.

        Args:
            project_id: The project of the eval.
            eval_id: The eval.
            eval_run_id: The run.

        Raises:
            NotFoundError: The project has no such eval, or the eval no such run.
        """
        with self._database.read() as connection:
            _EVALS.get(connection, eval_id, project_id=project_id)
            is_it = (eval_runs.c.eval_run_id == eval_run_id) & (eval_runs.c.eval_id == eval_id)
            row = connection.execute(_run_query().where(is_it)).mappings().first()
            if row is None:
                raise _RUNS.not_found(connection, eval_run_id)
            return _run_view(row)

    def run_of_job(self, job_id: str) -> EvalRun:
        """The run that a job carries out.

        Raises:
            NotFoundError: It was deleted.
        """
        with self._database.read() as connection:
            row = connection.execute(select(*_RUN_COLUMNS).where(eval_runs.c.job_id == job_id)).mappings().first()
            if row is None:
                raise _RUNS.not_found(connection, job_id)
            return _run(row)

    def runs(
        self, project_id: str, eval_id: str, *, after: str | None, limit: int, order: Order, status: RunStatus | None
    ) -> tuple[list[RunView], bool]:
        """One page of the runs of an eval, and whether more follow.

        Args:
            project_id: The project of the eval.
            eval_id: The eval.
            after: The id of the run before the page; None begins at the first.
            limit: The most runs.
            order: `asc` for the oldest first, `desc` for the newest.
            status: Only runs in this status; None for all.

        Raises:
            NotFoundError: The project has no such eval.
            UnsupportedError: `after` is no run of it.
        """
        with self._database.read() as connection:
            _EVALS.get(connection, eval_id, project_id=project_id)
            where = [eval_runs.c.eval_id == eval_id]
            if after is not None:
                of_it = select(eval_runs.c.number).where(*where, eval_runs.c.eval_run_id == after)
                place = self._run_places.place_of(eval_id, after, connection.execute(of_it).scalar(), _EXPECTED)
                where.append(_beyond(eval_runs.c.number, place, order, after))
            if status is not None:
                where.append(jobs.c.status.in_(_JOB_STATUSES[status]))
            number = eval_runs.c.number
            query = _run_query().where(*where).order_by(number.asc() if order == "asc" else number.desc())
            # One row more than asked for: whether another page follows is known without a second query that counts.
            rows = connection.execute(query.limit(limit + 1)).mappings().all()
        return [_run_view(row) for row in rows[:limit]], len(rows) > limit

    def num_active_runs(self, eval_id: str) -> int:
        """Runs of an eval that have not ended."""
        active = jobs.c.status.in_(("queued", "running", "paused"))
        query = select(eval_runs.c.number).select_from(_WITH_JOB)
        return len(self._scalars(query.where(eval_runs.c.eval_id == eval_id, active)))

    def remove_run(self, eval_run_id: str) -> None:
        """Delete a run with its items.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._write() as connection:
            row = connection.execute(_RUN_PLACES.where(eval_runs.c.eval_run_id == eval_run_id)).first()
            _RUNS.remove(connection, eval_run_id)
        if row is not None:
            self._run_places.keep(row.eval_id, eval_run_id, row.number)

    def append(self, eval_run_id: str, items: Sequence[OutputItem], totals: RunTotals) -> None:
        """Keep graded items with the counts that include them: all or none.

        Args:
            eval_run_id: The run.
            items: In the order of their rows; their time is set here.
            totals: The counts of the run, these items included.

        Raises:
            NotFoundError: The run was deleted.
        """
        with self._write() as connection:
            # First, since it also finds out that the run is still there.
            _RUNS.change(connection, eval_run_id, {"totals": totals.model_dump_json()})
            now = self._database.clock(connection)
            rows = [_ITEMS.row(one.model_copy(update={"created_at": now})) for one in items]
            if rows:
                connection.execute(insert(eval_output_items), rows)

    def restart(self, eval_run_id: str, num_items: int) -> None:
        """Delete all items of a run from a place on: those that a data source of another length had.

        Args:
            eval_run_id: The run.
            num_items: How many items stay.
        """
        with self._write() as connection:
            is_it = (eval_output_items.c.eval_run_id == eval_run_id) & (eval_output_items.c.position >= num_items)
            connection.execute(delete(eval_output_items).where(is_it))

    def item(self, eval_run_id: str, item_id: str) -> OutputItem:
        """One graded item.

        Raises:
            NotFoundError: The run has no such item.
        """
        return self._get(_ITEMS, item_id, eval_run_id=eval_run_id)

    def items(
        self, eval_run_id: str, *, after: str | None, limit: int, order: Order, status: str | None
    ) -> tuple[list[OutputItem], bool]:
        """One page of the graded items of a run, and whether more follow.

        Args:
            eval_run_id: The run; whether the caller may see it is checked before.
            after: The id of the item before the page; None begins at the first.
            limit: The most items.
            order: `asc` for the order of the rows, `desc` for the reverse.
            status: Only items with this result: `pass`, `fail` or `error`; None for all.

        Raises:
            UnsupportedError: `after` is no item of the run.
        """
        columns = eval_output_items.c
        with self._database.read() as connection:
            where = [columns.eval_run_id == eval_run_id]
            if after is not None:
                of_it = select(columns.position).where(*where, columns.item_id == after)
                where.append(_beyond(columns.position, connection.execute(of_it).scalar(), order, after))
            if status is not None:
                where.append(columns.status == status)
            ordered = [columns.position.asc() if order == "asc" else columns.position.desc()]
            rows = connection.execute(_ITEMS.query(*where, order=ordered, limit=limit + 1)).mappings().all()
        return [_ITEMS.of_row(row) for row in rows[:limit]], len(rows) > limit

    def all_items(self, eval_run_id: str, at_once: int = 500) -> Iterator[OutputItem]:
        """All graded items of a run, in the order of its rows.

        Args:
            eval_run_id: The run.
            at_once: Items that one query reads.
        """
        last = -1
        while True:
            beyond = eval_output_items.c.position > last
            order = [eval_output_items.c.position.asc()]
            found = self._list(_ITEMS, beyond, order=order, limit=at_once, eval_run_id=eval_run_id)
            yield from found
            if len(found) < at_once:
                return
            # Keyset pages: nothing is held open between two reads, and a restart of the run cannot shift them.
            last = found[-1].position

    def list(
        self, project_id: str, *, after: str | None, limit: int, order: Order, order_by: str
    ) -> tuple[list[Eval], bool]:
        """One page of a project's evals, and whether more follow.

        Args:
            project_id: The project.
            after: The id of the eval before the page; None begins at the first.
            limit: The most evals.
            order: `asc` for the oldest first, `desc` for the newest.
            order_by: `created_at` or `updated_at`, the time that `order` is about.

        Raises:
            UnsupportedError: `after` is no eval of the project.
        """
        by = evals.c.updated_at if order_by == "updated_at" else evals.c.created_at
        with self._database.read() as connection:
            where = [evals.c.project_id == project_id]
            if after is not None:
                place = _place(connection, project_id, after)
                made_at, changed_at, number = self._eval_places.place_of(project_id, after, place, _EXPECTED)
                at = changed_at if order_by == "updated_at" else made_at
                # By the position of the item and not by an offset: pages stay whole while evals are added.
                where.append(_behind(by, evals.c.number, at, number, order))
            columns = (by, evals.c.number)
            ordered = [one.asc() if order == "asc" else one.desc() for one in columns]
            rows = connection.execute(_EVALS.query(*where, order=ordered, limit=limit + 1)).mappings().all()
        return [_EVALS.of_row(row) for row in rows[:limit]], len(rows) > limit


def ended_event(connection: Connection, job: Job) -> tuple[str, str] | None:
    """The event of webhooks about the end of a run of an eval, as `ended_event` of its kind; None for others."""
    of_job = select(eval_runs.c.eval_run_id).where(eval_runs.c.job_id == job.job_id)
    run_id = connection.execute(of_job).scalar()
    names = {"succeeded": "succeeded", "failed": "failed", "cancelled": "canceled"}
    return None if run_id is None else (f"eval.run.{names[job.status]}", str(run_id))


def _run_query() -> Any:
    # Labelled, since both tables have columns of the same names.
    labelled = [column.label(f"job_{column.name}") for column in jobs.columns]
    return select(*_RUN_COLUMNS, *labelled).select_from(_WITH_JOB)


def _run_view(row: RowMapping) -> RunView:
    own = {column.name: row[f"job_{column.name}"] for column in jobs.columns}
    return RunView(_run(row), job_of(own))  # type: ignore[arg-type]


def _run(row: RowMapping) -> EvalRun:
    run = EvalRun.model_validate_json(row["document"])
    # The column is newer than the document.
    return run.model_copy(update={"totals": RunTotals.model_validate_json(row["totals"])})


def _place(connection: Connection, project_id: str, eval_id: str) -> tuple[float, float, int] | None:
    """When an eval was made and last changed, and the number of its row; None where the project has none of this id."""
    query = select(evals.c.created_at, evals.c.updated_at, evals.c.number)
    row = connection.execute(query.where(evals.c.project_id == project_id, evals.c.eval_id == eval_id)).first()
    return None if row is None else (row.created_at, row.updated_at, row.number)


def _behind(
    by: ColumnElement[Any], number: ColumnElement[Any], at: float, its_number: int, order: Order
) -> ColumnElement[bool]:
    """The rows that follow one in an order by a time, and by their number where times are equal."""
    if order == "asc":
        return or_(by > at, and_(by == at, number > its_number))
    return or_(by < at, and_(by == at, number < its_number))


def _beyond(number: ColumnElement[Any], place: int | None, order: Order, after: str) -> ColumnElement[bool]:
    if place is None:
        raise not_in_list(after, _EXPECTED)
    return number > place if order == "asc" else number < place
