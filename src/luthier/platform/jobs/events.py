"""Events of jobs, in order: status changes, figures of each step, models made; append-only, each code once.

The messages depend on the kind of job; those of training are OpenAI's.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, Final, Literal

from sqlalchemy import Connection, bindparam, insert, or_, select
from sqlalchemy.exc import IntegrityError

from luthier.core.frozen_model import FrozenModel
from luthier.core.text.utf8 import storable
from luthier.platform.db.database import Database
from luthier.platform.db.store import not_in_list
from luthier.platform.db.tables import job_events
from luthier.platform.jobs.kinds import KINDS
from luthier.platform.jobs.records import JobKind, JobStatus, Lane

Level = Literal["info", "warn", "error"]


class JobEvent(FrozenModel):
    """One event of a job. It never changes.

    Attributes:
        event_id: Its id, `ftevent-...`.
        job_id: The job that it is about.
        code: Its name within the job. An event of the same code is stored once, however often an attempt repeats it.
        created_at: Seconds since 1970 by the database's clock.
        level: How serious it is, as in OpenAI's API.
        message: One sentence for people.
        data: The figures of a training step; None for an event that is a message alone.
    """

    event_id: str
    job_id: str
    code: str
    created_at: float
    level: Level = "info"
    message: str
    data: dict[str, float | None] | None = None


_ENDS: Final[dict[JobStatus, str]] = {
    "succeeded": "The job has successfully completed",
    "failed": "The job has failed",
}


def created(kind: JobKind, job_id: str) -> str:
    """A job was queued."""
    return f"Created {KINDS[kind].noun or kind}: {job_id}"


def started(kind: JobKind, lane: Lane) -> tuple[str, str]:
    """The code and the words of a first attempt in a lane."""
    return ("validating", "Validating the files") if lane == "validate" else ("started", f"{KINDS[kind].title} started")


def goes_on(kind: JobKind) -> str:
    """Another attempt has begun."""
    return f"{KINDS[kind].title} {KINDS[kind].continues}"


def resumed(kind: JobKind) -> str:
    """A job that had ended or rested is queued again."""
    return f"{KINDS[kind].title} resumed"


def ended(kind: JobKind, status: JobStatus) -> str:
    """A job has ended without an error, or rests."""
    return _ENDS.get(status) or f"{KINDS[kind].title} {status}"


_BEYOND: Final = 2**31 - 1
"""Beyond any number of an event and any count of them."""
_SHOWN: Final = (
    job_events.c.event_id, job_events.c.job_id, job_events.c.code, job_events.c.created_at, job_events.c.level,
    job_events.c.message, job_events.c.data,
)  # fmt: skip
# Put together once, since polls ask it all the time.
_NEWEST_FIRST: Final = (
    select(*_SHOWN)
    .where(job_events.c.job_id == bindparam("its_job"), job_events.c.number < bindparam("before"))
    .order_by(job_events.c.number.desc())
    .limit(bindparam("at_most"))
)


class JobEventStore:
    """The events of all jobs. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        job_id: str,
        code: str,
        message: str,
        *,
        level: Level = "info",
        data: dict[str, float | None] | None = None,
    ) -> bool:
        """Store an event of a job; the first event of a code stays.

        Args:
            job_id: The job.
            code: The name of the event within the job.
            message: One sentence for people.
            level: How serious it is.
            data: The figures of a step.

        Returns:
            False if the job has an event of that code already.
        """
        try:
            with self._database.write() as connection:
                # Checked first: a repeated event is common, and PostgreSQL logs each violated constraint as an error.
                if has_event(connection, job_id, code):
                    return False
                now = self._database.clock(connection)
                insert_event(connection, now, job_id, message, code=code, level=level, data=data)
        except IntegrityError:  # another process has stored it at the same moment
            return False
        return True

    def page(self, job_id: str, *, after: str | None = None, limit: int | None = None) -> tuple[list[JobEvent], bool]:
        """One page of the events of a job.

        Args:
            job_id: The job.
            after: The id of the event behind which the page begins; None for the newest.
            limit: The most events of the page; None for all.

        Returns:
            The events, newest first, and whether there are more behind them.

        Raises:
            UnsupportedError: The job has no event `after`. An empty page would look like the end of the list.
        """
        given: dict[str, str | int] = {
            # One row more than requested shows whether there is another page, without a second query.
            "its_job": job_id, "before": _BEYOND, "at_most": _BEYOND if limit is None else limit + 1
        }  # fmt: skip
        with self._database.read() as connection:
            if after is not None:
                its = select(job_events.c.number).where(job_events.c.job_id == job_id, job_events.c.event_id == after)
                number = connection.execute(its).scalar()
                if number is None:
                    raise not_in_list(after, "the id of one of its events", where="an event of this job")
                given["before"] = number
            rows = connection.execute(_NEWEST_FIRST, given).all()
        shown = rows if limit is None else rows[:limit]
        return [_event(row) for row in shown], len(rows) > len(shown)

    def notes(self, job_id: str, *, limit: int) -> list[JobEvent]:
        """The events of a job except its steps, newest first, at most `limit`."""
        code = job_events.c.code  # codes of steps are `step-N`; the dot comes right behind the dash
        query = select(*_SHOWN).where(job_events.c.job_id == job_id, or_(code < "step-", code >= "step."))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(job_events.c.number.desc()).limit(limit)).all()
        return [_event(row) for row in rows]


def has_event(connection: Connection, job_id: str, code: str) -> bool:
    """Whether the job has an event of that code."""
    known = select(job_events.c.number).where(job_events.c.job_id == job_id, job_events.c.code == code)
    return connection.execute(known).first() is not None


def insert_event(
    connection: Connection,
    now: float,
    job_id: str,
    message: str,
    *,
    code: str | None = None,
    level: Level = "info",
    data: dict[str, float | None] | None = None,
) -> None:
    """Store an event within a transaction.

    Args:
        connection: A transaction that writes.
        now: Seconds since 1970 by the database's clock.
        job_id: The job.
        message: One sentence for people; it may quote names of the rows of a user, whatever characters they have.
        code: The name of the event within the job; None for what can happen again, such as a pause.
        level: How serious it is.
        data: The figures of a step.
    """
    event_id = f"ftevent-{secrets.token_hex(12)}"
    values = {
        "event_id": event_id, "job_id": job_id, "code": code or event_id, "created_at": now, "level": level,
        "message": storable(message), "data": None if data is None else json.dumps(data),
    }  # fmt: skip
    connection.execute(insert(job_events).values(**values))


def _event(row: Sequence[Any]) -> JobEvent:
    event_id, job_id, code, created_at, level, message, data = row
    return JobEvent(
        event_id=event_id,
        job_id=job_id,
        code=code,
        created_at=created_at,
        level=level,
        message=message,
        data=None if data is None else json.loads(data),
    )
