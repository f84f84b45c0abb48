"""The files of jobs that have ended: removed after `job_files_days`, unless something still refers to them.

    jobs/JOB/files, answers.jsonl, pairs.jsonl, formats/    copies of rows, and the work so far
    jobs/JOB/attempt-NNNN/                                  request, log and outcome of an attempt

What the work has made is in the database, the artifacts and the folders of runs, workflows and exports, so the folder
of most jobs goes as a whole. That of a job with a run stays for as long as the run, whose plan names files in it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from luthier.core.import_string import import_string
from luthier.platform.home.context import Context
from luthier.platform.jobs.kinds import KINDS
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.rows import ended_before

log = logging.getLogger("luthier.service")

_DAY_SECONDS: Final = 86_400.0
_AT_ONCE: Final = 500


def sweep_job_files(context: Context) -> int:
    """Remove the files of jobs that ended more than `job_files_days` ago, those of kinds whose files stay left out.

    Args:
        context: The home.

    Returns:
        The number of jobs.
    """
    folders = _folders(context.settings.jobs_folder)
    num_removed, names = 0, list(folders)
    for start in range(0, len(names), _AT_ONCE):
        jobs = _ended(context, names[start : start + _AT_ONCE])
        in_use = _in_use(context, jobs)
        for job in jobs:
            if job.job_id not in in_use and _remove(folders[job.job_id], job):
                num_removed += 1
    if num_removed:
        log.info("the files of %d jobs are removed: they ended long ago, and nothing refers to them", num_removed)
    return num_removed


def _folders(folder: Path) -> dict[str, Path]:
    """The folders of jobs that this home has, by the ids of the jobs."""
    try:
        # By the folders, which go, and not by the jobs, which stay.
        return {one.name: Path(one.path) for one in os.scandir(folder) if one.is_dir(follow_symlinks=False)}
    except FileNotFoundError:  # no job has begun
        return {}


def _ended(context: Context, job_ids: Sequence[str]) -> list[Job]:
    with context.database.read() as connection:
        moment = context.database.clock(connection) - context.settings.job_files_days * _DAY_SECONDS
        found = ended_before(connection, job_ids, moment)
    return [job for job in found if KINDS[job.kind].removes_files]


def _in_use(context: Context, jobs: Sequence[Job]) -> set[str]:
    """The ids of those jobs whose files something refers to."""
    found: set[str] = set()
    for kind in {job.kind for job in jobs}:
        if name := KINDS[kind].in_use:
            found |= import_string(name)(context, [job for job in jobs if job.kind == kind])
    return found


def _remove(folder: Path, job: Job) -> bool:
    """Remove the folder; of a job that may be resumed all but what it must not forget. Whether there was any."""
    kept = KINDS[job.kind].remembers if job.status == "failed" else ()
    entries = [one for one in folder.iterdir() if one.name not in kept]
    for one in entries:
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one, ignore_errors=True)
        else:
            one.unlink(missing_ok=True)
    with suppress(OSError):  # something is kept, or could not be removed
        folder.rmdir()
    return bool(entries)
