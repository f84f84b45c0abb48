"""Rows of the queue: found, held, and read as jobs."""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, bindparam, insert, select

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.text.suggest import suggest_ids
from luthier.platform.db.tables import jobs
from luthier.platform.jobs.event_format import created
from luthier.platform.jobs.events_store import insert_event
from luthier.platform.jobs.records import Job

_OWN = ("number", "crash_step", "num_losses", "announced")
"""Columns that are the store's alone."""

_MOST_COMPARED: Final = 100
# Polls ask these so often that putting them together costs more than carrying them out.
_BY_ID: Final = select(jobs).where(jobs.c.job_id == bindparam("its_id"))
_OF_PROJECT: Final = _BY_ID.where(jobs.c.project_id == bindparam("its_project"))


class LeaseLostError(ConflictError):
    """Another attempt has the job now, or it has ended: whoever gets this must stop working on it."""


def add_job(connection: Connection, now: float, job: Job) -> Job:
    """Queue a job within a transaction.

    Args:
        connection: A transaction that writes.
        now: Seconds since 1970 by the database's clock.
        job: Its id, kind, document, run, project and lane are stored; all else starts afresh.

    Returns:
        The job as it is stored.

    Raises:
        IntegrityError: The id is taken.
    """
    values = {
        "job_id": job.job_id, "kind": job.kind, "document": json.dumps(job.document), "run_id": job.run_id,
        # crash_step -1 is below any step, so the first crash always counts as one after progress.
        "status": "queued", "attempt": 0, "num_crashes": 0, "step": 0, "crash_step": -1, "not_before": now,
        "created_at": now, "updated_at": now, "project_id": job.project_id, "lane": job.lane,
    }  # fmt: skip
    connection.execute(insert(jobs).values(**values))
    insert_event(connection, now, job.job_id, created(job.kind, job.job_id), code="created")
    return job_by_id(connection, job.job_id)


def held_row(connection: Connection, job_id: str, attempt: int) -> RowMapping:
    """The row of a job, locked, for the attempt that holds it.

    Raises:
        LeaseLostError: Another attempt has the job, or it has ended.
        NotFoundError: There is no such job.
    """
    row = locked_row(connection, job_id)
    # The fence: a worker that was paused past its lease comes back with an older attempt number and may change nothing.
    if row["status"] != "running" or row["attempt"] != attempt:
        raise LeaseLostError(
            f"attempt {attempt} of job {job_id}, which is {row['status']} with attempt {row['attempt']}",
            expected="the attempt that holds the job",
            do="stop working on it: another worker has taken it over, or it has ended",
        )
    return row


def locked_row(connection: Connection, job_id: str) -> RowMapping:
    """The row of a job, which no other transaction changes until this one ends.

    Raises:
        NotFoundError: There is no such job.
    """
    # FOR UPDATE has no effect on SQLite, where BEGIN IMMEDIATE makes writers take turns already.
    row = connection.execute(select(jobs).where(jobs.c.job_id == job_id).with_for_update()).mappings().first()
    if row is None:
        raise no_such_job(connection, job_id)
    return row


def job_by_id(connection: Connection, job_id: str, project_id: str | None = None) -> Job:
    """A job by its id.

    Args:
        connection: An open transaction.
        job_id: The id.
        project_id: Only a job of this project; None for any.

    Raises:
        NotFoundError: There is no such job.
    """
    query = _BY_ID if project_id is None else _OF_PROJECT
    row = connection.execute(query, {"its_id": job_id, "its_project": project_id}).mappings().first()
    if row is None:
        raise no_such_job(connection, job_id, project_id)
    return job_of(row)


def job_of_run(connection: Connection, run_id: str, project_id: str) -> Job | None:
    """The newest job of a project that names this run; None where there is none."""
    query = select(jobs).where(jobs.c.run_id == run_id, jobs.c.project_id == project_id).order_by(jobs.c.number.desc())
    row = connection.execute(query.limit(1)).mappings().first()
    return None if row is None else job_of(row)


def is_row(row: RowMapping) -> Any:
    """The condition that is true of this row alone."""
    return jobs.c.number == row["number"]


def job_of(row: RowMapping) -> Job:
    """The job of a row."""
    values = {name: value for name, value in row.items() if name not in _OWN}
    values["document"] = json.loads(values["document"])
    values["error"] = None if values["error"] is None else json.loads(values["error"])
    return Job(**values)


def no_such_job(connection: Connection, job_id: str, project_id: str | None = None) -> NotFoundError:
    """The error for an id that is no job's; it names the nearest ones, within the project where one is named.

    Within a project only its newest jobs are compared, since a server does this while others wait.
    """
    query = select(jobs.c.job_id).order_by(jobs.c.number.desc())
    if project_id is not None:
        query = query.where(jobs.c.project_id == project_id).limit(_MOST_COMPARED)
    known = connection.execute(query).scalars().all()
    return NotFoundError(
        f"no job {job_id!r}; {suggest_ids(job_id, known)}",
        expected="the id of a job in this home" if project_id is None else "the id of a job of this project",
        do="see `luthier jobs list`" if project_id is None else "list them: GET /v1/fine_tuning/jobs",
    )
