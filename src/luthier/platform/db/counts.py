"""Counts of all records, in one query: for monitoring a server."""

from __future__ import annotations

from sqlalchemy import func, select

from luthier.core.frozen_model import FrozenModel
from luthier.platform.db.database import Database
from luthier.platform.db.tables import jobs, key_usage, webhook_deliveries


class Measured(FrozenModel):
    """Counts at one moment, by the database's clock.

    Attributes:
        jobs_by_status: Jobs by their status.
        oldest_queued_seconds: How long the job that has waited longest has been queued; 0 where none waits.
        busy_workers: The names of the workers whose lease has not run out.
        num_tokens: Tokens that were charged to keys, in total.
        deliveries_by_status: Webhook messages by their status.
    """

    jobs_by_status: dict[str, int]
    oldest_queued_seconds: float
    busy_workers: frozenset[str]
    num_tokens: int
    deliveries_by_status: dict[str, int]


def measure(database: Database) -> Measured:
    """Count in one transaction that reads."""
    now = database.now
    with database.read() as connection:
        # The database's clock, which leases were written by; this machine's may differ from it.
        clock = float(connection.execute(select(now)).scalar_one())
        by_status = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all()
        # updated_at, not created_at: a job that was given back has waited since then.
        since = connection.execute(select(func.min(jobs.c.updated_at)).where(jobs.c.status == "queued")).scalar()
        leased = select(jobs.c.worker).distinct().where(jobs.c.status == "running", jobs.c.lease_until >= clock)
        workers = connection.execute(leased).scalars().all()
        tokens = connection.execute(select(func.sum(key_usage.c.num_tokens))).scalar()
        statement = select(webhook_deliveries.c.status, func.count()).group_by(webhook_deliveries.c.status)
        deliveries = connection.execute(statement).all()
    return Measured(
        jobs_by_status={row[0]: row[1] for row in by_status},
        oldest_queued_seconds=0.0 if since is None else max(0.0, clock - float(since)),
        busy_workers=frozenset(str(worker) for worker in workers if worker is not None),
        num_tokens=int(tokens or 0),
        deliveries_by_status={row[0]: row[1] for row in deliveries},
    )
