"""The queue: who may work on what, held by leases, so that nothing is lost and nothing is done twice at once.

A worker holds a job by a lease that it renews; where it stops to, another takes the job over. Each start has its own
attempt number, and whoever comes with an older one is turned away: the fencing of Gray & Cheriton, 1989, "Leases: an
efficient fault-tolerant mechanism for distributed file cache consistency", doi:10.1145/74850.74870, with tokens. All
times are the database's, so that the clocks of the workers do not matter.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.job import ENDED, Job, JobStatus, Wish
from luthier.store.database import Database
from luthier.store.nearest import nearest_ids
from luthier.store.tables import jobs

LEASE_SECONDS: Final = 90.0
"""Long enough for a database to restart below a healthy training, short enough to wait for."""
MOST_CRASHES: Final = 3
FIRST_REST_SECONDS: Final = 5.0
LONGEST_REST_SECONDS: Final = 300.0


class LeaseLostError(ConflictError):
    """Another attempt has the job now, or it has ended: whoever gets this must stop working on it."""


class JobStore:
    """The queue of a home. Every method is one short transaction.

    Methods that take a job id raise NotFoundError, naming the nearest ids, where there is no such job.
    """

    def __init__(self, database: Database, lease_seconds: float = LEASE_SECONDS) -> None:
        self._database, self.lease_seconds = database, lease_seconds

    def submit(self, job: Job) -> Job:
        """Queue a job. Raises ConflictError where the id is taken."""
        try:
            with self._database.write() as connection:
                now = self._now(connection)
                values = {
                    "job_id": job.job_id, "kind": job.kind, "document": json.dumps(job.document), "run_id": job.run_id,
                    "status": "queued", "attempt": 0, "num_crashes": 0, "step": 0, "crash_step": -1, "not_before": now,
                    "created_at": now, "updated_at": now, "project_id": job.project_id, "lane": job.lane,
                }  # fmt: skip
                connection.execute(insert(jobs).values(**values))
                return self._get(connection, job.job_id)
        except IntegrityError as error:
            raise ConflictError(
                f"job {job.job_id} exists already", expected="a new id", do="make one with new_id('job')"
            ) from error

    def get(self, job_id: str) -> Job:
        """One job."""
        with self._database.read() as connection:
            return self._get(connection, job_id)

    def list(self, *, status: JobStatus | None = None, limit: int | None = None) -> list[Job]:
        """Jobs, newest first: all, or those of one status; at most `limit`."""
        query = select(jobs).order_by(jobs.c.number.desc()).limit(limit)
        if status is not None:
            query = query.where(jobs.c.status == status)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def claim(self, worker: str) -> Job | None:
        """Take the next job and start an attempt of it; None where there is nothing to do.

        First comes what this very worker held when it died, whatever its lease says: there is one process of a name.
        Then what another worker has lost, then what is queued, oldest first. What was lost counts as a crash, and a job
        that has crashed too often without getting any further fails instead of being given out again.
        """
        with self._database.write() as connection:
            now = self._now(connection)
            while (row := self._next(connection, worker, now)) is not None:
                if row["status"] == "running":
                    self._end_attempt(connection, row, now, "the worker that held it is gone")
                    if connection.execute(select(jobs.c.status).where(_is(row))).scalar() != "queued":
                        continue
                connection.execute(
                    update(jobs)
                    .where(_is(row))
                    .values(
                        status="running",
                        worker=worker,
                        attempt=jobs.c.attempt + 1,
                        lease_until=now + self.lease_seconds,
                        updated_at=now,
                    )
                )
                return self._get(connection, str(row["job_id"]))
        return None

    def beat(self, job_id: str, attempt: int, step: int = 0) -> Wish | None:
        """Renew the lease and say how far the work is; returns what is asked of it. Raises LeaseLostError."""
        with self._database.write() as connection:
            row, now = self._held(connection, job_id, attempt), self._now(connection)
            values = {"lease_until": now + self.lease_seconds, "step": max(step, row["step"]), "updated_at": now}
            connection.execute(update(jobs).where(_is(row)).values(**values))
            wish: Wish | None = row["wish"]
            return wish

    def finish(self, job_id: str, attempt: int, status: JobStatus, error: dict[str, Any] | None = None) -> Job:
        """Close an attempt: the job has ended, or is paused. Raises LeaseLostError."""
        with self._database.write() as connection:
            row, now = self._held(connection, job_id, attempt), self._now(connection)
            self._close(connection, row, now, status, error)
            return self._get(connection, job_id)

    def give_back(self, job_id: str, attempt: int, *, rest_seconds: float = 0.0) -> Job:
        """Put a job back into the queue in good order, as when its worker shuts down. Raises LeaseLostError.

        rest_seconds: how long nobody is to take it. What it was asked meanwhile is done at once.
        """
        with self._database.write() as connection:
            row, now = self._held(connection, job_id, attempt), self._now(connection)
            if row["wish"] is None:
                self._stop(connection, row, now, not_before=now + rest_seconds)
            else:
                self._close(connection, row, now, "paused" if row["wish"] == "pause" else "cancelled", None)
            return self._get(connection, job_id)

    def crash(self, job_id: str, attempt: int, reason: str) -> Job:
        """An attempt ended without a word. The job rests and is tried again, or fails. Raises LeaseLostError."""
        with self._database.write() as connection:
            row, now = self._held(connection, job_id, attempt), self._now(connection)
            self._end_attempt(connection, row, now, reason)
            return self._get(connection, job_id)

    def ask(self, job_id: str, wish: Wish) -> Job:
        """Ask a job to pause or to be cancelled: at once where nobody works on it, else as soon as its worker hears.

        Raises ConflictError where it has ended, or where it is to be paused and is already.
        """
        with self._database.write() as connection:
            row, now = self._row(connection, job_id), self._now(connection)
            status = row["status"]
            if status in ENDED or (status, wish) == ("paused", "pause") or row["wish"] == "cancel":
                words = {"pause": "paused: queued or running", "cancel": "cancelled: queued, running or paused"}
                raise ConflictError(
                    f"job {job_id} is {_job(row).shown_status}",
                    expected=f"a job that can be {words[wish]}",
                    do="look at it: it may be what you wanted already",
                )
            if status == "running":
                connection.execute(update(jobs).where(_is(row)).values(wish=wish, updated_at=now))
            else:
                self._close(connection, row, now, "paused" if wish == "pause" else "cancelled", None)
            return self._get(connection, job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a paused or failed job again; it goes on from its last checkpoint.

        Raises ConflictError where it is not paused or failed: also while it is still pausing.
        """
        with self._database.write() as connection:
            row, now = self._row(connection, job_id), self._now(connection)
            if row["status"] not in ("paused", "failed"):
                raise ConflictError(
                    f"job {job_id} is {_job(row).shown_status}",
                    expected="a job that is paused or has failed",
                    do="wait until it has paused" if row["wish"] == "pause" else "look at it: it needs no resuming",
                )
            values = {"status": "queued", "wish": None, "num_crashes": 0, "not_before": now, "error": None}
            connection.execute(update(jobs).where(_is(row)).values(**values, finished_at=None, updated_at=now))
            return self._get(connection, job_id)

    def _next(self, connection: Connection, worker: str, now: float) -> RowMapping | None:
        running, queued = jobs.c.status == "running", jobs.c.status == "queued"
        for condition in (
            running & (jobs.c.worker == worker),
            running & (jobs.c.lease_until < now),
            queued & (jobs.c.not_before <= now),
        ):
            query: Select[Any] = select(jobs).where(condition).order_by(jobs.c.number).limit(1)
            row = connection.execute(query.with_for_update(skip_locked=True)).mappings().first()
            if row is not None:
                return row
        return None

    def _end_attempt(self, connection: Connection, row: RowMapping, now: float, reason: str) -> None:
        """What becomes of a job whose attempt ended without a word."""
        if row["wish"] is not None:  # it was to stop, and it has
            self._close(connection, row, now, "paused" if row["wish"] == "pause" else "cancelled", None)
            return
        has_got_further = row["step"] > row["crash_step"]
        num_crashes = 1 if has_got_further else row["num_crashes"] + 1
        after = {"num_crashes": num_crashes, "crash_step": row["step"]}
        connection.execute(update(jobs).where(_is(row)).values(**after))
        if num_crashes >= MOST_CRASHES:
            error = {
                "type": "WorkError",
                "came": f"job {row['job_id']} crashed {num_crashes} times at step {row['step']} ({reason})",
                "expected": "work that gets further between two crashes",
                "do": "look at the log of its last attempt (too little memory?), then resume the job",
            }
            self._close(connection, row, now, "failed", error)
            return
        rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 4 ** (num_crashes - 1))
        self._stop(connection, row, now, not_before=now if has_got_further else now + rest)

    def _stop(self, connection: Connection, row: RowMapping, now: float, *, not_before: float) -> None:
        values = {"status": "queued", "worker": None, "lease_until": None, "not_before": not_before, "updated_at": now}
        connection.execute(update(jobs).where(_is(row)).values(**values))

    def _close(
        self, connection: Connection, row: RowMapping, now: float, status: JobStatus, error: dict[str, Any] | None
    ) -> None:
        values = {"status": status, "wish": None, "worker": None, "lease_until": None, "updated_at": now}
        document = None if error is None else json.dumps(error)
        finished = now if status in ENDED else None
        connection.execute(update(jobs).where(_is(row)).values(**values, error=document, finished_at=finished))

    def _held(self, connection: Connection, job_id: str, attempt: int) -> RowMapping:
        row = self._row(connection, job_id)
        if row["status"] != "running" or row["attempt"] != attempt:
            raise LeaseLostError(
                f"attempt {attempt} of job {job_id}, which is {row['status']} with attempt {row['attempt']}",
                expected="the attempt that holds the job",
                do="stop working on it: another worker has taken it over, or it has ended",
            )
        return row

    def _row(self, connection: Connection, job_id: str) -> RowMapping:
        query = select(jobs).where(jobs.c.job_id == job_id).with_for_update()
        row = connection.execute(query).mappings().first()
        if row is None:
            raise _no_such_job(connection, job_id)
        return row

    def _get(self, connection: Connection, job_id: str) -> Job:
        row = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).mappings().first()
        if row is None:
            raise _no_such_job(connection, job_id)
        return _job(row)

    def _now(self, connection: Connection) -> float:
        return float(connection.execute(select(self._database.now)).scalar_one())


def _is(row: RowMapping) -> Any:
    return jobs.c.number == row["number"]


def _job(row: RowMapping) -> Job:
    values = {name: value for name, value in row.items() if name not in ("number", "crash_step", "announced")}
    values["document"] = json.loads(values["document"])
    values["error"] = None if values["error"] is None else json.loads(values["error"])
    return Job(**values)


def _no_such_job(connection: Connection, job_id: str) -> NotFoundError:
    known = connection.execute(select(jobs.c.job_id).order_by(jobs.c.number.desc())).scalars().all()
    return NotFoundError(
        f"no job {job_id!r}; {nearest_ids(job_id, known)}",
        expected="the id of a job in this home",
        do="see `luthier jobs list`",
    )
