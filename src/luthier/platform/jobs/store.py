"""The queue: who may work on what, held by leases, so that nothing is lost and nothing is done twice.

A worker holds a job by a lease that it renews; where it stops to, another takes the job over. Each start has its own
attempt number, and calls with an older one are rejected: the fencing of Gray & Cheriton, 1989, "Leases: an
efficient fault-tolerant mechanism for distributed file cache consistency", doi:10.1145/74850.74870, with tokens. All
times are the database's, so that the clocks of the workers do not matter.

The database's clock may be set while jobs wait and run (`store.lease_watch`):

forward   for the time of a lease no lease is taken as run out, so that every living worker can renew its own
back      what rests longer than any rest is due; a lease that ends later than any lease is lost once it has not been
          renewed for the time of a lease, by a clock that is never set
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, false, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.data_sources import without_queries
from luthier.core.errors import ConflictError
from luthier.core.system.clock_jump import SLACK_SECONDS, elapsed
from luthier.platform.db.database import Database
from luthier.platform.db.tables import jobs
from luthier.platform.jobs.events import ended, goes_on, has_event, insert_event, resumed, started
from luthier.platform.jobs.kinds import KINDS
from luthier.platform.jobs.records import ENDED, Job, JobKind, JobStatus, Lane, Wish
from luthier.platform.jobs.rows import (
    LeaseLostError,
    LeaseWatch,
    add_job,
    held_row,
    is_row,
    job_by_id,
    job_of,
    job_of_run,
    job_of_workflow,
    locked_row,
    may_be_claimed,
    newest_jobs,
)

__all__ = ["LEASE_SECONDS", "MOST_CRASHES", "JobStore", "LeaseLostError"]

LEASE_SECONDS: Final = 90.0
"""Long enough for a database to restart below a healthy training, short enough to wait for."""
MOST_CRASHES: Final = 3
MOST_LOSSES: Final = 10
FIRST_REST_SECONDS: Final = 5.0
LONGEST_REST_SECONDS: Final = 300.0


class JobStore:
    """The queue of a home. Every method is one short transaction.

    Methods that take a job id raise NotFoundError, naming the nearest ids, where there is no such job.
    """

    def __init__(
        self, database: Database, lease_seconds: float = LEASE_SECONDS, *, clock: Callable[[], float] = elapsed
    ) -> None:
        self._database, self.lease_seconds, self._leases = database, lease_seconds, LeaseWatch(clock)

    def submit(self, job: Job) -> Job:
        """Queue a job.

        Raises:
            ConflictError: The id is taken.
        """
        try:
            with self._database.write() as connection:
                return add_job(connection, self._database.clock(connection), job)
        except IntegrityError as error:
            raise ConflictError(
                f"job {job.job_id} exists already", expected="a new id", do="make one with new_id('job')"
            ) from error

    def get(self, job_id: str, project_id: str | None = None) -> Job:
        """One job; that of another project than the one named is as one that is not there."""
        with self._database.read() as connection:
            return job_by_id(connection, job_id, project_id)

    def of_run(self, run_id: str, project_id: str) -> Job | None:
        """The newest job of a project that makes or continues this run; None where there is none."""
        with self._database.read() as connection:
            return job_of_run(connection, run_id, project_id)

    def of_workflow(self, workflow_id: str, project_id: str) -> Job | None:
        """The newest job of a project that makes or continues this workflow; None where there is none."""
        with self._database.read() as connection:
            return job_of_workflow(connection, workflow_id, project_id)

    def list(
        self,
        *,
        status: JobStatus | Sequence[JobStatus] | None = None,
        kinds: Sequence[JobKind] = (),
        limit: int | None = None,
        project_id: str | None = None,
        prefix: str = "",
        after: str | None = None,
    ) -> list[Job]:
        """Jobs, newest first.

        Args:
            status: Only jobs of this status, or of one of these.
            kinds: Only jobs of these kinds; empty for all.
            limit: The most jobs; None for all.
            project_id: Only jobs of this project.
            prefix: The beginning of their ids.
            after: Only jobs that are older than this one.

        Raises:
            NotFoundError: There is no job `after`.
        """
        statuses = None if status is None else (status,) if isinstance(status, str) else tuple(status)
        query = newest_jobs(statuses, tuple(kinds), is_of_project=project_id is not None, is_cut=limit is not None)
        # Only where needed: each of these makes a copy, which SQLAlchemy has to identify again.
        if prefix:
            query = query.where(jobs.c.job_id.startswith(prefix, autoescape=True))
        with self._database.read() as connection:
            if after is not None:
                job_by_id(connection, after, project_id)
                query = query.where(
                    jobs.c.number < select(jobs.c.number).where(jobs.c.job_id == after).scalar_subquery()
                )
            values = {"its_project": project_id, "its_limit": limit}
            asked = {name: value for name, value in values.items() if value is not None}
            return [job_of(row) for row in connection.execute(query, asked).mappings()]

    def claim(
        self, worker: str, lanes: tuple[Lane, ...] = ("train",), note_lost: Callable[[Job], object] = lambda _job: None
    ) -> Job | None:
        """Take the next job of these lanes and start an attempt of it; None where there is nothing to do.

        First comes what this worker held when it died, regardless of the lease: there is one process of a name.
        Then what another worker has lost, then what is queued, oldest first. What was lost counts as a crash, and a job
        that has crashed too often without getting any further fails instead of being given out again.

        Args:
            worker: Its name; there is one process of a name.
            lanes: The kinds of work that it does.
            note_lost: Called in the transaction with each job whose worker was gone, as the job is now.

        Raises:
            OutdatedError: A newer version has migrated the database or started its server: its workers take the jobs.
        """
        if not self._may_claim(worker, lanes):
            return None
        is_checked = False
        with self._database.write() as connection:
            now = self._database.clock(connection)
            # Before any lease is compared with `now`: a clock that was just set forward must not expire all of them.
            self._leases.look(now, self.lease_seconds)
            # A loop: closing a lost job is no work for this worker, which takes the next one in this transaction.
            while (row := self._next(connection, worker, now, lanes)) is not None:
                if not is_checked:
                    self._database.check_version(connection)
                    is_checked = True
                if row["status"] == "running":
                    self._end_attempt(connection, row, now, "the worker that held it is gone", is_lost=True)
                    note_lost(after := job_by_id(connection, str(row["job_id"])))
                    # Too many crashes, or a pending pause or cancel, has closed it: look for the next one.
                    if after.status != "queued":
                        continue
                connection.execute(
                    update(jobs)
                    .where(is_row(row))
                    .values(
                        status="running",
                        worker=worker,
                        # The new fencing token: from here on every call with an older number raises LeaseLostError.
                        attempt=jobs.c.attempt + 1,
                        lease_until=now + self.lease_seconds,
                        updated_at=now,
                    )
                )
                # In the transaction of the claim: a start that is announced has a holder, and the other way round.
                self._tell_start(connection, row, now)
                return job_by_id(connection, str(row["job_id"]))
        return None

    def beat(self, job_id: str, attempt: int, step: int = 0) -> Wish | None:
        """Renew the lease and store the step that the work has reached.

        Args:
            job_id: The job.
            attempt: The attempt that holds it, from 1.
            step: The last step that ended; a smaller one than before is ignored.

        Returns:
            What the job is wished to do: Pause, cancel, or None.

        Raises:
            LeaseLostError: Another attempt has the job, or it has ended.
        """
        with self._database.write() as connection:
            row, now = held_row(connection, job_id, attempt), self._database.clock(connection)
            # The step never goes back: crashes are compared by it, and it reads 0 while an attempt prepares its run.
            values = {"lease_until": now + self.lease_seconds, "step": max(step, row["step"]), "updated_at": now}
            connection.execute(update(jobs).where(is_row(row)).values(**values))
            # The heartbeat is the only way that a wish reaches a worker: no other connection leads to its machine.
            wish: Wish | None = row["wish"]
            return wish

    def finish(
        self,
        job_id: str,
        attempt: int,
        status: JobStatus,
        error: dict[str, Any] | None = None,
        found: dict[str, Any] | None = None,
    ) -> Job:
        """Close an attempt: the job has ended, or is paused.

        Args:
            job_id: The job.
            attempt: The attempt that holds it.
            status: Its status from now on; one that has paused is cancelled where that was asked for meanwhile.
            error: Why it failed, as `LuthierError.as_json` writes it.
            found: Merged into `found` of its document.

        Raises:
            LeaseLostError: Another attempt has the job, or it has ended.
        """
        with self._database.write() as connection:
            row, now = held_row(connection, job_id, attempt), self._database.clock(connection)
            if status == "paused" and row["wish"] == "cancel":
                # Asked for after the worker last looked, and promised to the caller: nobody would ask again.
                status = "cancelled"
            self._note(connection, row, found)
            # After the note: `_close` writes the event, whose readers then find the whole document.
            self._close(connection, row, now, status, error)
            return job_by_id(connection, job_id)

    def advance(self, job_id: str, attempt: int, found: dict[str, Any] | None = None) -> Job:
        """The files are valid: the job moves to the lane `train`, or does the pause or cancel that is pending.

        Args:
            job_id: The job.
            attempt: The attempt that holds it.
            found: Merged into `found` of its document.

        Raises:
            LeaseLostError: Another attempt has the job, or it has ended.
        """
        with self._database.write() as connection:
            row, now = held_row(connection, job_id, attempt), self._database.clock(connection)
            self._note(connection, row, found)
            # Crashes in validation say nothing about training: it gets its full number of attempts.
            fresh = {"lane": "train", "num_crashes": 0, "num_losses": 0, "crash_step": -1}
            connection.execute(update(jobs).where(is_row(row)).values(**fresh))
            insert_event(connection, now, job_id, "Files validated, moving job to queued state", code="validated")
            # `_stop` puts it back into the queue, where a worker of the lane `train` takes it with a new attempt
            # number.
            if row["wish"] is None:
                self._stop(connection, row, now, not_before=now)
            else:
                self._close(connection, row, now, "paused" if row["wish"] == "pause" else "cancelled", None)
            return job_by_id(connection, job_id)

    def give_back(self, job_id: str, attempt: int, *, rest_seconds: float = 0.0, is_waiting: bool = False) -> Job:
        """Put a job back into the queue, as when its worker shuts down. A pending pause or cancel is done immediately.

        Args:
            job_id: The job.
            attempt: The attempt that holds it.
            rest_seconds: How long no worker may take it; at most `LONGEST_REST_SECONDS`.
            is_waiting: Whether it rests until something elsewhere has ended, as its last event says.

        Raises:
            LeaseLostError: Another attempt has the job, or it has ended.
        """
        with self._database.write() as connection:
            row, now = held_row(connection, job_id, attempt), self._database.clock(connection)
            if row["wish"] is not None:
                self._close(connection, row, now, "paused" if row["wish"] == "pause" else "cancelled", None)
                return job_by_id(connection, job_id)
            self._stop(connection, row, now, not_before=now + min(rest_seconds, LONGEST_REST_SECONDS))
            if is_waiting:
                # An attempt that ends so has done its work: only crashes without one in between add up, since a job may
                # wait for days.
                fresh = {"num_crashes": 0, "num_losses": 0, "crash_step": -1}
                connection.execute(update(jobs).where(is_row(row)).values(**fresh))
                return job_by_id(connection, job_id)
            # A rest is for trouble outside of the job (disk, database); without one its worker was asked to stop.
            if rest_seconds:
                message = "The disk is full, or the database did not answer: the job will be tried again soon"
                insert_event(connection, now, job_id, message, level="warn")
            else:
                insert_event(connection, now, job_id, "The worker was stopped: the job waits for the next one")
            return job_by_id(connection, job_id)

    def crash(self, job_id: str, attempt: int, reason: str, *, is_lost: bool = False) -> Job:
        """An attempt ended without an outcome. The job rests and is tried again, or fails.

        Args:
            job_id: The job.
            attempt: The attempt that held it.
            reason: How it ended, for people.
            is_lost: Whether it was killed because its worker was gone, and has not crashed itself.

        Raises:
            LeaseLostError: Another attempt has the job, or it has ended.
        """
        with self._database.write() as connection:
            row, now = held_row(connection, job_id, attempt), self._database.clock(connection)
            self._end_attempt(connection, row, now, reason, is_lost=is_lost)
            return job_by_id(connection, job_id)

    def ask(self, job_id: str, wish: Wish) -> Job:
        """Pause or cancel a job: immediately where no worker holds it, else as soon as its worker checks it.

        Args:
            job_id: The job.
            wish: `pause` or `cancel`.

        Raises:
            ConflictError: It has ended, is being cancelled already, is paused and should pause, or is of a kind that
                cannot be paused.
        """
        with self._database.write() as connection:
            row, now = locked_row(connection, job_id), self._database.clock(connection)
            rules = KINDS[row["kind"]]
            if wish == "pause" and not rules.pauses:
                raise ConflictError(
                    f"job {job_id} is {rules.with_article}",
                    expected="a job that trains, writes questions or carries out a workflow",
                    do="cancel it, or wait until it ends",
                )
            # Under the row's lock, so that a worker cannot start or finish the job between the check and the change.
            status = row["status"]
            if status in ENDED or (status, wish) == ("paused", "pause") or row["wish"] == "cancel":
                words = {"pause": "paused: queued or running", "cancel": "cancelled: queued, running or paused"}
                raise ConflictError(
                    f"job {job_id} is {job_of(row).shown_status}",
                    expected=f"a job that can be {words[wish]}",
                    do="check it: the change may already be made",
                )
            if status == "running":
                message = f"Pausing: {rules.pauses}" if wish == "pause" else "Cancelling"
                insert_event(connection, now, job_id, message)
                # The worker reads it with its next look at the job; nothing else reaches a process on another machine.
                connection.execute(update(jobs).where(is_row(row)).values(wish=wish, updated_at=now))
            else:
                self._close(connection, row, now, "paused" if wish == "pause" else "cancelled", None)
            return job_by_id(connection, job_id)

    def resume(self, job_id: str, changes: Mapping[str, Any] | None = None) -> Job:
        """Queue a paused or failed job again; it continues from its last checkpoint.

        Args:
            job_id: Of the job.
            changes: Keys of its document that get other values.

        Raises:
            ConflictError: It is not paused or failed; a job that is still pausing is neither.
        """
        with self._database.write() as connection:
            row, now = locked_row(connection, job_id), self._database.clock(connection)
            if row["status"] not in ("paused", "failed"):
                raise ConflictError(
                    f"job {job_id} is {job_of(row).shown_status}",
                    expected="a job that is paused or has failed",
                    do="wait until it has paused" if row["wish"] == "pause" else "check it: it needs no resuming",
                )
            values: dict[str, Any] = {
                "status": "queued",
                "wish": None,
                "num_crashes": 0,
                "num_losses": 0,
                "not_before": now,
                "error": None,
            }
            # announced 0: webhooks hear of its next end, too.
            values |= {"finished_at": None, "updated_at": now, "announced": 0}
            if changes:
                values["document"] = json.dumps({**json.loads(row["document"]), **changes})
            connection.execute(update(jobs).where(is_row(row)).values(**values))
            insert_event(connection, now, job_id, resumed(row["kind"]))
            return job_by_id(connection, job_id)

    def _may_claim(self, worker: str, lanes: tuple[Lane, ...]) -> bool:
        """Whether there is anything to claim, seen by one read: workers without work look several times a second.

        A claim that finds nothing would take six statements, and a turn to write.
        """
        with self._database.read() as connection:
            now = self._database.clock(connection)
            if may_be_claimed(connection, worker, lanes, now, *self._latest(now)):
                return True
        # The claim would have noticed a clock that was set, and that no lease ends too late.
        self._leases.look(now, self.lease_seconds)
        self._leases.unrenewed((), self.lease_seconds)
        return False

    def _latest(self, now: float) -> tuple[float, float]:
        """The latest ends of a lease and of a rest: of later ones the clock was set back after they were written."""
        return now + self.lease_seconds + SLACK_SECONDS, now + LONGEST_REST_SECONDS + SLACK_SECONDS

    def _next(self, connection: Connection, worker: str, now: float, lanes: tuple[Lane, ...]) -> RowMapping | None:
        running, queued = jobs.c.status == "running", jobs.c.status == "queued"
        is_ours, may_have_run_out = jobs.c.lane.in_(lanes), self._leases.may_have_run_out()
        latest_end, latest_rest = self._latest(now)
        # Of every lane: the workers of all lanes share this watch, which forgets the leases that it does not see.
        too_late = select(jobs.c.number, jobs.c.attempt, jobs.c.lease_until).where(
            running, jobs.c.lease_until > latest_end
        )
        lost = self._leases.unrenewed(
            [(row.number, row.attempt, row.lease_until) for row in connection.execute(too_late)], self.lease_seconds
        )
        # In order of urgency: its own, expired leases, leases with an impossible end, then the queue.
        for condition in (
            running & (jobs.c.worker == worker),
            running & ((jobs.c.lease_until < now) if may_have_run_out else false()),
            running & jobs.c.number.in_(lost),
            queued & ((jobs.c.not_before <= now) | (jobs.c.not_before > latest_rest)),
        ):
            # skip_locked: on PostgreSQL two workers that ask at once get two jobs; SQLite has one writer anyway.
            query: Select[Any] = select(jobs).where(condition, is_ours).order_by(jobs.c.number).limit(1)
            row = connection.execute(query.with_for_update(skip_locked=True)).mappings().first()
            if row is not None:
                return row
        return None

    def _end_attempt(self, connection: Connection, row: RowMapping, now: float, reason: str, *, is_lost: bool) -> None:
        """What becomes of a job whose attempt ended without a word.

        is_lost: what ended is its worker or its machine. That is rarely the job's doing, so it takes more of them until
        the job is given up: but not forever, since a job may crash its machine.
        """
        if row["wish"] is not None:  # it was to stop, and it has
            self._close(connection, row, now, "paused" if row["wish"] == "pause" else "cancelled", None)
            return
        # crash_step is -1 before the first crash, so that a crash at step 0 already counts as one at a new place.
        has_got_further = row["step"] > row["crash_step"]
        # Progress since the last crash shows that the job itself works: only crashes at the same place add up.
        before = {"num_crashes": 0, "num_losses": 0} if has_got_further else row
        num_crashes, num_losses = before["num_crashes"] + (not is_lost), before["num_losses"] + is_lost
        after = {"num_crashes": num_crashes, "num_losses": num_losses, "crash_step": row["step"]}
        connection.execute(update(jobs).where(is_row(row)).values(**after))
        if num_crashes >= MOST_CRASHES or num_losses >= MOST_LOSSES:
            what = f"lost its worker {num_losses} times" if is_lost else f"crashed {num_crashes} times"
            error = {
                "type": "WorkError",
                "came": f"job {row['job_id']} {what} at step {row['step']} ({reason})",
                "expected": "work that gets further between two crashes",
                "do": "check the log of its last attempt (too little memory?), then resume the job",
            }
            self._close(connection, row, now, "failed", error)
            return
        # Exponential backoff from 5 s on. An attempt that made progress is repeated immediately (below).
        rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 4 ** max(0, num_crashes - 1))
        message = f"The work ended unexpectedly ({reason}): {KINDS[row['kind']].picked_up}"
        insert_event(connection, now, row["job_id"], message, level="warn")
        self._stop(connection, row, now, not_before=now if has_got_further else now + rest)

    def _stop(self, connection: Connection, row: RowMapping, now: float, *, not_before: float) -> None:
        values = {"status": "queued", "worker": None, "lease_until": None, "not_before": not_before, "updated_at": now}
        connection.execute(update(jobs).where(is_row(row)).values(**values))

    def _close(
        self, connection: Connection, row: RowMapping, now: float, status: JobStatus, error: dict[str, Any] | None
    ) -> None:
        values: dict[str, Any] = {
            "status": status,
            "wish": None,
            "worker": None,
            "lease_until": None,
            "updated_at": now,
        }
        document = None if error is None else json.dumps(error)
        finished = now if status in ENDED else None
        if KINDS[row["kind"]].hides_queries and status in ("succeeded", "cancelled"):
            kept = without_queries(job_by_id(connection, row["job_id"]).document)
            values["document"] = json.dumps(kept)
        connection.execute(update(jobs).where(is_row(row)).values(**values, error=document, finished_at=finished))
        message = ended(row["kind"], status) if error is None else str(error.get("message") or error["came"])
        insert_event(connection, now, row["job_id"], message, level="info" if error is None else "error")

    def _tell_start(self, connection: Connection, row: RowMapping, now: float) -> None:
        code, message = started(row["kind"], row["lane"])
        # Reported once for each code: a retried validation is not announced again.
        if not has_event(connection, row["job_id"], code):
            insert_event(connection, now, row["job_id"], message, code=code)
        elif row["lane"] != "validate":
            insert_event(connection, now, row["job_id"], goes_on(row["kind"]))

    def _note(self, connection: Connection, row: RowMapping, found: dict[str, Any] | None) -> None:
        """Let what the work has found join the document of the job."""
        if found:
            document = json.loads(row["document"])
            # Read and written in the caller's transaction, so that no other change of the document gets lost.
            document["found"] = {**document.get("found", {}), **found}
            connection.execute(update(jobs).where(is_row(row)).values(document=json.dumps(document)))
