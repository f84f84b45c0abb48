"""Jobs that do the same: two people who send the same form get one job, and not its work and its cost twice."""

from __future__ import annotations

from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job


def open_twin(context: Context, job: Job, key: str, *, apart_from: str) -> Job | None:
    """The job of the project that waits or runs and does what a new one would do; None where there is none.

    Args:
        context: The home.
        job: The new one, which is not submitted yet.
        key: The part of its document that says what it does.
        apart_from: The field of that part in which two such jobs differ.
    """
    wanted = {**job.document[key], apart_from: None}
    for one in context.jobs.list(project_id=job.project_id, kinds=(job.kind,), status=("queued", "running")):
        # One that is to be paused or cancelled gives no result.
        if one.wish is None and {**one.document.get(key, {}), apart_from: None} == wanted:
            return one
    return None


def is_joined(job: Job, began: float) -> bool:
    """Whether a job was queued before a request for it began.

    Args:
        job: What the request was given.
        began: The time of its beginning, by the clock of the database.
    """
    return job.created_at < began
