"""Batches of all projects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, select

from luthier.core.errors import ConflictError
from luthier.features.batches.records import ENDED, Batch, BatchStatus
from luthier.platform.db.store import Missing, RecordTable, Store, not_in_list
from luthier.platform.db.tables import batches, jobs
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.rows import add_job, job_of

_BATCHES: Final = RecordTable(
    batches,
    Batch,
    key="batch_id",
    missing=Missing("no batch {key!r}", "the id of a batch of this project", "list them: GET /v1/batches"),
)
_HOUR_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch with the job that carries it out.

    Attributes:
        batch: The batch.
        job: Its job.
    """

    batch: Batch
    job: Job

    @property
    def status(self) -> BatchStatus:
        """OpenAI's status of the batch."""
        if self.batch.has_ended:
            return self.batch.status
        # A job that crashed again and again, or that the operator has cancelled, cannot write it down itself.
        return {"failed": "failed", "cancelled": "cancelled"}.get(self.job.status, self.batch.status)  # type: ignore[return-value]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in ENDED


class BatchStore(Store):
    """The batches of all projects. Every method is one short transaction."""

    def add(self, one: Batch, job: Job) -> BatchView:
        """Store a batch and queue its job: both or neither.

        Args:
            one: Its times are set here, from its completion window.
            job: Of the batch.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            seconds = int(one.completion_window.removesuffix("h")) * _HOUR_SECONDS
            one = one.model_copy(update={"created_at": now, "expires_at": now + seconds})
            # One transaction: no worker can take a job whose batch is not there yet.
            made = add_job(connection, now, job)
            return BatchView(_BATCHES.insert(connection, one), made)

    def get(self, project_id: str, batch_id: str) -> BatchView:
        """One batch.

        Raises:
            NotFoundError: The project has no such batch.
        """
        with self._database.read() as connection:
            is_it = (batches.c.batch_id == batch_id) & (batches.c.project_id == project_id)
            row = connection.execute(_query().where(is_it)).mappings().first()
            if row is None:
                raise _BATCHES.not_found(connection, batch_id)
            return _view(row)

    def of_job(self, job_id: str) -> Batch:
        """The batch that a job carries out.

        Raises:
            NotFoundError: The job carries out no batch.
        """
        with self._database.read() as connection:
            found = _BATCHES.first(connection, batches.c.job_id == job_id)
            if found is None:
                raise _BATCHES.not_found(connection, job_id)
            return found

    def list(self, project_id: str, *, after: str | None, limit: int) -> tuple[list[BatchView], bool]:
        """One page of a project's batches, newest first, and whether more follow.

        Args:
            project_id: The project.
            after: The id of the batch before the page; None begins at the newest.
            limit: The most batches.

        Raises:
            UnsupportedError: `after` is no batch of the project.
        """
        with self._database.read() as connection:
            where = [batches.c.project_id == project_id]
            if after is not None:
                of_it = select(batches.c.number).where(*where, batches.c.batch_id == after)
                if (place := connection.execute(of_it).scalar()) is None:
                    raise not_in_list(after, "the id of a batch of this project")
                where.append(batches.c.number < place)
            query = _query().where(*where).order_by(batches.c.number.desc()).limit(limit + 1)
            rows = connection.execute(query).mappings().all()
        return [_view(row) for row in rows[:limit]], len(rows) > limit

    def change(self, batch_id: str, values: Mapping[str, Any], *, time_of: str = "") -> Batch:
        """Set fields of a batch.

        Args:
            batch_id: The batch.
            values: Fields and their values. A status does not go back from `cancelling` to what came before it.
            time_of: The field that becomes now where it is not set; empty for none.
        """
        values = dict(values)
        with self._write() as connection:
            one = _BATCHES.get(connection, batch_id, is_locked=True)
            # The worker writes its progress without knowing of a cancellation a moment ago, which must not be lost.
            if one.status == "cancelling" and values.get("status") in ("validating", "in_progress"):
                del values["status"]
            # A later attempt passes the same stages again: the time of the first one stays.
            if time_of and getattr(one, time_of) is None:
                values[time_of] = self._database.clock(connection)
            one = one.model_copy(update=values)
            _BATCHES.change(connection, batch_id, _BATCHES.row(one))
            return one

    def cancel(self, project_id: str, batch_id: str, *, is_queued: bool) -> Batch:
        """Have a batch cancelled.

        Raises:
            NotFoundError: There is none in the project.
            ConflictError: It has ended.
        """
        with self._write() as connection:
            one = _BATCHES.get(connection, batch_id, is_locked=True, project_id=project_id)
            if one.has_ended or one.status == "finalizing":
                raise ConflictError(
                    f"batch {batch_id} is {one.status}",
                    expected="a batch in progress",
                    do="it can no longer be cancelled",
                )
            now = self._database.clock(connection)
            values: dict[str, Any] = {"status": "cancelling", "cancelling_at": one.cancelling_at or now}
            if is_queued:
                values |= {"status": "cancelled", "cancelled_at": now}
            one = one.model_copy(update=values)
            _BATCHES.change(connection, batch_id, _BATCHES.row(one))
            return one


def ended_event(connection: Connection, job: Job) -> tuple[str, str] | None:
    """The event of webhooks about the end of a batch; `ended_event` of its kind of job."""
    one = _BATCHES.first(connection, batches.c.job_id == job.job_id)
    # A batch that OpenAI would call failed may be the result of a job that has succeeded.
    view = None if one is None else BatchView(one, job)
    return None if view is None or not view.has_ended else (f"batch.{view.status}", view.batch.batch_id)


def _query() -> Any:
    labelled = [column.label(f"job_{column.name}") for column in jobs.columns]
    with_job = batches.join(jobs, jobs.c.job_id == batches.c.job_id)
    return select(batches.c.document, *labelled).select_from(with_job)


def _view(row: RowMapping) -> BatchView:
    own = {column.name: row[f"job_{column.name}"] for column in jobs.columns}
    return BatchView(_BATCHES.of_row(row), job_of(own))  # type: ignore[arg-type]
