"""Use case: what a server has to do, who does it, and how much room is left."""

from __future__ import annotations

from luthier.platform.db.counts import Measured, measure
from luthier.platform.home.context import Context
from luthier.platform.http.readiness import free_bytes

_PREFIX, _SUFFIX = "worker-", ".lock"


def measured(context: Context) -> Measured:
    """What the database knows.

    Raises:
        UnreachableError: The database does not answer.
    """
    return measure(context.database)


def living_workers(context: Context, busy: frozenset[str]) -> frozenset[str]:
    """The workers that are there: those that hold a job, wherever they run, and those of this home that wait for one.

    A worker holds a lock of its name as long as its process lives, which is seen by the machine that it runs on.
    """
    from luthier.core.system.file_lock import is_held

    locks = context.settings.jobs_folder.glob(f"{_PREFIX}*{_SUFFIX}")
    # A lock file stays after its worker: that the lock is held tells that the process lives.
    return busy | {lock.name[len(_PREFIX) : -len(_SUFFIX)] for lock in locks if is_held(lock)}


def disk_free_bytes(context: Context) -> int:
    """What is free on the disk that holds the home."""
    return free_bytes(context)
