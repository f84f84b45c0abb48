"""What people do with a job that was ordered: they cancel, pause and resume it, and follow it.

What was ordered (an evaluation, an export, an import, a workflow) is the feature's: it finds the job in the project of
the caller, names the action for the audit log, and has a page.
"""

from __future__ import annotations

from typing import Any

from luthier.core.access import Caller
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.jobs.cancelled import clean_up_cancelled
from luthier.platform.jobs.events import JobEvent
from luthier.platform.jobs.records import Job, Wish, with_caller


def cancel(
    context: Context,
    caller: Caller,
    job: Job,
    action: str,
    *,
    subject: str = "",
    facts: dict[str, Any] | None = None,
) -> Job:
    """Cancel a job, and remove what it has left on the disk.

    Args:
        context: The home.
        caller: Who cancels it.
        job: A job of the caller's project.
        action: For the audit log, such as `export.cancelled`.
        subject: What the entry of the log is about; empty for the job.
        facts: Details for the log.

    Returns:
        The job as it is now: one that is worked on is cancelled once its attempt has ended.

    Raises:
        ConflictError: It has ended, or is being cancelled already.
    """
    after = _ask(context, caller, job, "cancel", action, subject, facts)
    clean_up_cancelled(context, after)  # a running attempt does that itself as it ends
    return after


def pause(
    context: Context,
    caller: Caller,
    job: Job,
    action: str,
    *,
    subject: str = "",
    facts: dict[str, Any] | None = None,
) -> Job:
    """Pause a job where it can continue later.

    Args:
        context: The home.
        caller: Who pauses it.
        job: A job of the caller's project.
        action: For the audit log.
        subject: As of `cancel`.
        facts: As of `cancel`.

    Returns:
        The job as it is now.

    Raises:
        ConflictError: It has ended, is paused, or is of a kind that cannot be paused.
    """
    return _ask(context, caller, job, "pause", action, subject, facts)


def resume(
    context: Context,
    caller: Caller,
    job: Job,
    action: str,
    *,
    subject: str = "",
    facts: dict[str, Any] | None = None,
) -> Job:
    """Queue a paused or failed job again.

    It continues with the access of who resumes it: who started it may have none any more.

    Args:
        context: The home.
        caller: Who resumes it.
        job: A job of the caller's project.
        action: For the audit log.
        subject: As of `cancel`.
        facts: As of `cancel`.

    Returns:
        The job as it is now.

    Raises:
        ConflictError: It is neither paused nor failed; a job that is still pausing is neither.
    """
    with context.database.transaction():
        after = context.jobs.resume(job.job_id, with_caller(job.document, caller))
        record(context, caller, action, subject or job.job_id, facts)
    return after


def newest_event(context: Context, job: Job) -> JobEvent | None:
    """What was reported of a job last; None before the first event."""
    newest, _ = context.job_events.page(job.job_id, limit=1)
    return newest[0] if newest else None


def mark_of(job: Job, newest: JobEvent | None) -> str:
    """A text that changes with each thing that can be seen to happen to a job.

    Args:
        job: The job. Its status alone is not enough: a running job reports its progress by events.
        newest: Its newest event; None before the first.
    """
    return f"{job.shown_status}-{newest.event_id if newest else 0}"


def _ask(
    context: Context,
    caller: Caller,
    job: Job,
    wish: Wish,
    action: str,
    subject: str,
    facts: dict[str, Any] | None,
) -> Job:
    # In one transaction: a change without its entry would leave a log that proves nothing.
    with context.database.transaction():
        after = context.jobs.ask(job.job_id, wish)
        record(context, caller, action, subject or job.job_id, facts)
    return after
