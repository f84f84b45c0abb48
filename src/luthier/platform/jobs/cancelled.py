"""What a cancelled job leaves on the disk: removed, or kept where its kind says so.

A running attempt does that itself when it is asked to stop. It cannot where it was killed, and where none was running.
"""

from __future__ import annotations

import logging

from luthier.core.errors import LuthierError
from luthier.core.import_string import import_string
from luthier.platform.home.context import Context
from luthier.platform.jobs.kinds import KINDS
from luthier.platform.jobs.records import Job

log = logging.getLogger("luthier.service")


def clean_up_cancelled(context: Context, job: Job) -> None:
    """Remove what a cancelled job has left; nothing for jobs in another state, and where its attempt has done it.

    The job stays cancelled where that fails, which is logged.

    Args:
        context: The home.
        job: The job, as it is after the request to cancel it or after its attempt.
    """
    if job.status != "cancelled" or not (name := KINDS[job.kind].cancelled):
        return
    try:
        import_string(name)(context, job)
    except (LuthierError, OSError, ValueError) as error:  # ValueError: a document of an earlier version
        reason = error.came if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
        log.warning("%s: not all that the cancelled job has left could be removed: %s", job.job_id, reason)
