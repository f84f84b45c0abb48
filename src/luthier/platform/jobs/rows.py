"""Rows of the job queue: found, held and read as jobs, and leases when the wall clock is set.

As leases of leader election in Kubernetes, those that look wrong are recognised by when this process has seen them
change, on its own clock, and not by the time that is written in them.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, RowMapping, Select, bindparam, false, insert, or_, select

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.system.clock_jump import JumpWatch
from luthier.core.text.suggest import suggest_ids
from luthier.platform.db.tables import jobs
from luthier.platform.jobs.events import created, insert_event
from luthier.platform.jobs.records import ENDED, Job, JobKind, JobStatus, Lane


class LeaseWatch:
    """What one process has seen of clock and leases. Thread-safe.

    Args:
        clock: Seconds on a clock that is never set.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._jumps, self._lock = clock, JumpWatch(clock), threading.Lock()
        self._trusted_from = -math.inf
        self._seen: dict[tuple[int, int, float], float] = {}

    def look(self, now: float, lease_seconds: float) -> None:
        """Notice whether the database's clock was set forward.

        Args:
            now: Seconds since 1970 by the database's clock.
            lease_seconds: The length of a lease: for this long no lease counts as expired after a jump.
        """
        with self._lock:
            if self._jumps.look(now) > 0:
                # A jump forward makes living leases look expired. Within one lease's time every living worker renews
                # its own.
                self._trusted_from = self._clock() + lease_seconds

    def may_have_run_out(self) -> bool:
        """Whether a lease whose end is past can be taken as run out: not just after the clock was set forward."""
        with self._lock:
            return self._clock() >= self._trusted_from

    def unrenewed(self, leases: Sequence[tuple[int, int, float]], lease_seconds: float) -> list[int]:
        """Of leases that end too late, those that were not renewed for the length of a lease.

        Args:
            leases: All leases that end too late now, of all lanes: number of the job, attempt,
                end in seconds since 1970.
            lease_seconds: The length of a lease.

        Returns:
            The numbers of their jobs.
        """
        with self._lock:
            now = self._clock()
            # A renewal changes the end and so the key: its time starts again. Released leases drop out, which
            # bounds memory.
            self._seen = {lease: self._seen.get(lease, now) for lease in leases}
            return [lease[0] for lease, since in self._seen.items() if now - since >= lease_seconds]


@lru_cache(maxsize=256)
def newest_jobs(
    statuses: tuple[JobStatus, ...] | None, kinds: tuple[JobKind, ...], *, is_of_project: bool, is_cut: bool
) -> Select[Any]:
    """The query for jobs, newest first. Built once for the same arguments, since pages and workers ask again and again.

    Args:
        statuses: Only jobs of one of these; None for all.
        kinds: Only jobs of these; empty for all.
        is_of_project: Whether only those of a project, which is bound to `its_project`.
        is_cut: Whether there is a limit, which is bound to `its_limit`.
    """
    query = select(jobs).order_by(jobs.c.number.desc())
    if statuses is not None:
        query = query.where(or_(false(), *(jobs.c.status == one for one in statuses)))
    if kinds:
        query = query.where(or_(*(jobs.c.kind == one for one in kinds)))
    if is_of_project:
        query = query.where(jobs.c.project_id == bindparam("its_project"))
    return query.limit(bindparam("its_limit")) if is_cut else query


_OWN = ("number", "crash_step", "num_losses", "announced")
"""Columns that are the store's alone."""

_MOST_COMPARED: Final = 100
# Polls ask these so often that putting them together costs more than carrying them out.
_BY_ID: Final = select(jobs).where(jobs.c.job_id == bindparam("its_id"))
_OF_PROJECT: Final = _BY_ID.where(jobs.c.project_id == bindparam("its_project"))
_now: Final[BindParameter[Any]] = bindparam("now")
_CLAIMABLE: Final = (
    select(jobs.c.number)
    .where(
        (
            (jobs.c.status == "running")
            & (
                (jobs.c.worker == bindparam("its_worker"))
                | (jobs.c.lease_until < _now)
                | (jobs.c.lease_until > bindparam("latest_end"))
            )
        )
        | (
            (jobs.c.status == "queued")
            & jobs.c.lane.in_(bindparam("lanes", expanding=True))
            & ((jobs.c.not_before <= _now) | (jobs.c.not_before > bindparam("latest_rest")))
        )
    )
    .limit(1)
)


class LeaseLostError(ConflictError):
    """Another attempt has the job now, or it has ended: the caller must stop working on it."""


def add_job(connection: Connection, now: float, job: Job) -> Job:
    """Queue a job within a transaction.

    Args:
        connection: A transaction that writes.
        now: Seconds since 1970 by the database's clock.
        job: Its id, kind, document, run, workflow, project and lane are stored; all else starts afresh.

    Returns:
        The stored job.

    Raises:
        IntegrityError: The id is taken.
    """
    values = {
        "job_id": job.job_id, "kind": job.kind, "document": json.dumps(job.document), "run_id": job.run_id,
        # crash_step -1 is below any step, so the first crash always counts as one after progress.
        "status": "queued", "attempt": 0, "num_crashes": 0, "step": 0, "crash_step": -1, "not_before": now,
        "created_at": now, "updated_at": now, "project_id": job.project_id, "lane": job.lane,
        "workflow_id": job.workflow_id or None,
    }  # fmt: skip
    connection.execute(insert(jobs).values(**values))
    insert_event(connection, now, job.job_id, created(job.kind, job.job_id), code="created")
    return job_by_id(connection, job.job_id)


def may_be_claimed(
    connection: Connection, worker: str, lanes: Sequence[Lane], now: float, latest_end: float, latest_rest: float
) -> bool:
    """Whether a claim may find a job: one that the worker could take, or a lease of any lane that has to be watched.

    Args:
        connection: A transaction that reads.
        worker: Its name.
        lanes: The lanes that it takes jobs from.
        now: Seconds since 1970 by the database's clock.
        latest_end: A lease that ends later cannot come from this clock.
        latest_rest: Nor can a rest that ends later.
    """
    values = {
        "its_worker": worker,
        "lanes": list(lanes),
        "now": now,
        "latest_end": latest_end,
        "latest_rest": latest_rest,
    }
    return connection.execute(_CLAIMABLE, values).first() is not None


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
            do="stop working on it: another worker has it now, or it has ended",
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


def job_of_workflow(connection: Connection, workflow_id: str, project_id: str) -> Job | None:
    """The newest job of a project that makes or continues this workflow; None where there is none."""
    query = select(jobs).where(jobs.c.workflow_id == workflow_id, jobs.c.project_id == project_id)
    row = connection.execute(query.order_by(jobs.c.number.desc()).limit(1)).mappings().first()
    return None if row is None else job_of(row)


def ended_before(connection: Connection, job_ids: Sequence[str], moment: float) -> list[Job]:
    """Those of these jobs that have ended before a moment.

    Args:
        connection: An open transaction.
        job_ids: The ids; one that is no job's is left out.
        moment: By the database's clock, seconds since 1970.
    """
    query = select(jobs).where(jobs.c.job_id.in_(job_ids), jobs.c.status.in_(ENDED), jobs.c.finished_at < moment)
    return [job_of(row) for row in connection.execute(query).mappings()]


def is_row(row: RowMapping) -> Any:
    """The condition that is true of this row alone."""
    return jobs.c.number == row["number"]


def job_of(row: RowMapping) -> Job:
    """The job of a row."""
    values = {name: value for name, value in row.items() if name not in _OWN}
    values["document"] = json.loads(values["document"])
    values["error"] = None if values["error"] is None else json.loads(values["error"])
    values["workflow_id"] = values["workflow_id"] or ""
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
