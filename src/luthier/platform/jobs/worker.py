"""A worker: takes one job after another and supervises the process that does it, until a stop is requested."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.child_process.fork_client import ForkServer, NotStartedError
from luthier.core.errors import LuthierError
from luthier.core.system.clock_jump import elapsed
from luthier.platform.db.database import OutdatedError
from luthier.platform.db.server_version import own_version
from luthier.platform.jobs.records import Job, JobStatus, Lane, Wish
from luthier.platform.jobs.store import JobStore, LeaseLostError
from luthier.platform.processes.process import Attempt

_TICK_SECONDS: Final = 0.1

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """The intervals of a worker, in seconds.

    Attributes:
        look: Between two looks for work.
        ping: Between two reads of the job's wish.
        beat: Between two renewals of the lease.
        grace: From SIGTERM to SIGKILL, for a last checkpoint.
        margin: How long before the end of the lease its guard kills the child, where the lease is not renewed.
        rest: Until a job is tried again that met a full disk or a database that did not answer.
    """

    look: float = 0.3
    ping: float = 0.5
    beat: float = 5.0
    grace: float = 60.0
    margin: float = 20.0
    rest: float = 15.0

    @classmethod
    def for_lease(cls, seconds: float) -> Pace:
        """The usual pace, quickened where leases are shorter than usual."""
        usual = cls()
        # Several heartbeats fit into one lease, so that one that fails or comes late costs nothing.
        return cls(beat=min(usual.beat, seconds / 6), margin=min(usual.margin, seconds / 4))


class Worker:
    """Looks after one job at a time.

    Args:
        name: Its name, unique among all processes: what it held when it died it takes back immediately.
        store: The queue.
        command: The command that does a job, given the folder of its attempt.
        step_of: The training step that a job has reached.
        folder: Where the folders of jobs and attempts are.
        tell: Called with each line of its log.
        pace: Its intervals; None for the usual ones.
        lanes: The lanes that it takes jobs from.
        fork_server: Starts the processes of jobs from loaded libraries; None has each load its own.
        tells_stop: Whether its log has a line about its end; of several in one process one says it for all.
        on_cancelled: Called with each job that it has written down as cancelled, also of workers that are gone.
    """

    def __init__(
        self,
        name: str,
        store: JobStore,
        command: Callable[[Job, Path], Sequence[str]],
        step_of: Callable[[Job], int],
        folder: Path,
        *,
        tell: Tell,
        pace: Pace | None = None,
        lanes: tuple[Lane, ...] = ("train",),
        fork_server: ForkServer | None = None,
        tells_stop: bool = True,
        on_cancelled: Callable[[Job], None] = lambda _: None,
    ) -> None:
        self.tells_stop, self.on_cancelled = tells_stop, on_cancelled
        self.job_ids: set[str] = set()
        """Of the jobs that it has taken."""
        self.name, self.store, self.command, self.step_of, self.folder = name, store, command, step_of, folder
        self.tell, self.pace, self.lanes, self.fork_server = tell, pace or Pace(), lanes, fork_server

    def work(self, stop_requested: Callable[[], str | None], *, until_idle: bool = False) -> int:
        """Take jobs until a stop is requested; a running job is then stopped and put back into the queue.

        A database that does not answer is waited for.

        Args:
            stop_requested: Returns why to stop; None to continue.
            until_idle: Whether to return when no job is left.

        Returns:
            The number of attempts.

        Raises:
            OutdatedError: A newer version has migrated the database or started its server; jobs wait for its workers.
        """
        own_version()  # read before the files of the package may be replaced by those of another version
        num_done = 0
        while (reason := stop_requested()) is None:
            # Before the claim: the lease counts from some moment after this one.
            leased, is_answered, lost = elapsed(), True, list[Job]()
            try:
                job = self.store.claim(self.name, self.lanes, lost.append)
            except OutdatedError:
                raise
            except LuthierError as error:
                self.tell(f"waiting for the database: {error.came}")
                job, is_answered = None, False
                lost.clear()  # the transaction was rolled back
            for one in lost:
                if one.status == "cancelled":  # its own worker would have called this
                    self.on_cancelled(one)
            if job is not None:
                num_done += 1
                self.job_ids.add(job.job_id)
                self._run(job, leased, stop_requested)
            elif until_idle and is_answered:
                return num_done
            else:
                _wait(self.pace.look, stop_requested)
        if self.tells_stop:
            self.tell(f"stopped: {reason}")
        return num_done

    def _run(self, job: Job, leased: float, stop_requested: Callable[[], str | None]) -> None:
        self.tell(f"{job.job_id} attempt {job.attempt}: {job.kind} {job.run_id}")
        try:
            attempt = self._start(job, leased, stop_requested)
        except NotStartedError:
            self._settle(job, lambda: self._put_back(job))
            return
        except OSError as error:  # a full disk, or no process left: another time
            self.tell(f"{job.job_id} cannot be started: {error}")
            self._settle(job, lambda: self._requeue_later(job))
            return
        try:
            wish, is_stopping = self._supervise(job, leased, attempt, stop_requested)
        except LeaseLostError as error:
            self.tell(f"{job.job_id} is lost: {error.came}")
            return
        finally:
            attempt.close()
        self._settle(job, lambda: self._record_outcome(job, attempt, wish, is_stopping=is_stopping))

    def _start(self, job: Job, leased: float, stop_requested: Callable[[], str | None]) -> Attempt:
        folder = self.folder / job.job_id / f"attempt-{job.attempt:04d}"
        folder.mkdir(parents=True)  # an attempt number is given once: a folder that is there would be another's
        looked = elapsed()

        def is_unwanted() -> bool:
            nonlocal looked
            if stop_requested() is not None:
                return True
            if elapsed() - looked < self.pace.ping:
                return False
            looked = elapsed()
            # Where the database does not answer, the attempt is started, and its wish is read again.
            with contextlib.suppress(LuthierError):
                return self.store.get(job.job_id).wish is not None
            return False

        return Attempt(self.command(job, folder), folder, self._deadline(leased), self.fork_server, is_unwanted)

    def _put_back(self, job: Job) -> Job:
        """Settle a job that was not started: as it is asked to be, else back into the queue, since the worker stops."""
        wish = self.store.get(job.job_id).wish
        if wish is None:
            return self.store.give_back(job.job_id, job.attempt)
        return self.store.finish(job.job_id, job.attempt, "cancelled" if wish == "cancel" else "paused")

    def _deadline(self, leased: float) -> float:
        """When the child must be dead, before another worker may have the job: of a lease from the moment `leased`."""
        return leased + self.store.lease_seconds - self.pace.margin

    def _supervise(
        self, job: Job, leased: float, attempt: Attempt, stop_requested: Callable[[], str | None]
    ) -> tuple[Wish | None, bool]:
        """Until the child has ended; the request to it, and whether the worker itself has to stop."""
        pace, wish, is_stopping = self.pace, job.wish, False
        kill_at: float | None = None
        # Not time.monotonic, which stops while the machine sleeps: leases do not.
        beaten, looked = leased, 0.0
        while not attempt.has_ended:
            now = elapsed()
            if kill_at is not None and now >= kill_at:
                attempt.kill()
            if now - looked >= pace.ping:
                looked = now
                try:
                    # Between two renewals a plain read is enough to see a request within half a second.
                    if now - beaten >= pace.beat:
                        beaten = now
                        wish = self.store.beat(job.job_id, job.attempt, self.step_of(job))
                        # Only this makes the lease longer: a database may answer reads and write nothing. Where
                        # renewals fail or this process hangs, the guard ends the child at the last deadline.
                        attempt.extend(self._deadline(now))
                    else:
                        wish = self.store.get(job.job_id).wish
                except LeaseLostError:
                    attempt.kill()
                    raise
                except LuthierError as error:  # a database that restarts is no reason to end a healthy training
                    self.tell(f"{job.job_id}: the database does not answer: {error.came}")
            if kill_at is None and (wish is not None or stop_requested() is not None):
                is_stopping = wish is None
                attempt.terminate()
                kill_at = now + pace.grace
            attempt.wait(_TICK_SECONDS)
        return wish, is_stopping

    def _settle(self, job: Job, write_down: Callable[[], Job]) -> None:
        """Write down how the attempt ended. Tried until the database answers or the lease must be taken as lost."""
        deadline = time.monotonic() + self.store.lease_seconds
        while True:
            try:
                after = write_down()
            except LeaseLostError as error:
                self.tell(f"{job.job_id} is lost: {error.came}")
                return
            except LuthierError as error:
                self.tell(f"{job.job_id}: waiting for the database: {error.came}")
                if time.monotonic() >= deadline:
                    return  # the next attempt finds the run ended and has little to do
                time.sleep(self.pace.look)
            else:
                self.tell(f"{job.job_id}: {after.shown_status}")
                if after.status == "cancelled":
                    self.on_cancelled(after)
                return

    def _record_outcome(self, job: Job, attempt: Attempt, wish: Wish | None, *, is_stopping: bool) -> Job:
        """Report the result of an attempt to the queue; returns the updated job."""
        outcome = attempt.outcome()
        if outcome is None and attempt.has_to_wait:
            return self._requeue_later(job)
        if outcome is None and not is_stopping:
            # What it reached since the last heartbeat: a job that gets further between two crashes is not given up.
            self.store.beat(job.job_id, job.attempt, self.step_of(job))
            return self.store.crash(job.job_id, job.attempt, attempt.how_it_ended(), is_lost=attempt.was_lost)
        if outcome is None or (outcome.status == "paused" and is_stopping):
            return self.store.give_back(job.job_id, job.attempt)
        if outcome.status == "waiting":
            return self.store.give_back(job.job_id, job.attempt, rest_seconds=outcome.rest_seconds, is_waiting=True)
        if outcome.status == "validated":
            return self.store.advance(job.job_id, job.attempt, outcome.found)
        if outcome.status != "paused":
            return self.store.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)
        status: JobStatus = "cancelled" if wish == "cancel" else "paused"
        return self.store.finish(job.job_id, job.attempt, status)

    def _requeue_later(self, job: Job) -> Job:
        return self.store.give_back(job.job_id, job.attempt, rest_seconds=self.pace.rest)


def _wait(seconds: float, stop_requested: Callable[[], str | None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and stop_requested() is None:
        time.sleep(_TICK_SECONDS)
