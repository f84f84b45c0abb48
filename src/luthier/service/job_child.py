"""The process that does one attempt of a job: what the worker's guard starts.

    python -m luthier.service.job_child HOME FOLDER

FOLDER is the attempt's own. It holds `job.json`, which says what is to be done; the last act is to write the outcome
into it. Ends as the run ends: paused after SIGTERM, with a checkpoint; what a person has to correct is an outcome, too.
A full disk or a database that stays away is none: then it ends with `NOT_NOW`, and the job goes on when there is room.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from luthier.core.disk_full import is_disk_full
from luthier.core.job import Job

if TYPE_CHECKING:
    from luthier.jobs.process import Outcome
    from luthier.service.context import Context

JOB_NAME = "job.json"
_LEAST_FREE_BYTES: Final = 1 << 20
_PATIENCE_SECONDS: Final = 60.0  # the worker's own ends with the lease


def main(home: Path, folder: Path) -> None:
    """Do the job that stands in the folder."""
    from luthier.core.errors import LuthierError, StorageFullError, UnreachableError
    from luthier.core.kernel_cache import keep_few_kernels
    from luthier.core.threads import wait_briefly
    from luthier.jobs.process import NOT_NOW, Outcome, write_outcome
    from luthier.service.context import Context

    wait_briefly()
    keep_few_kernels()
    job = Job.model_validate_json((folder / JOB_NAME).read_bytes())
    try:
        with Context.open(home, database_patience_seconds=_PATIENCE_SECONDS) as context:
            try:
                outcome = _carry_out(context, job)
            except (StorageFullError, UnreachableError):
                raise
            except LuthierError as error:
                if _is_for_want_of_room(error, home):
                    raise
                outcome = Outcome(status="failed", error=error.as_json())
            write_outcome(folder, outcome)
    except (StorageFullError, UnreachableError) as error:
        _end(error, NOT_NOW)
    except Exception as error:
        if not _is_for_want_of_room(error, home):
            raise
        _end(error, NOT_NOW)


def _carry_out(context: Context, job: Job) -> Outcome:
    """One attempt of whatever kind of job this is."""
    from luthier.jobs.process import Outcome
    from luthier.service import evaluation_job, export_job, recipe_job, tuning_job
    from luthier.service.recipe_jobs import ASKED

    if job.kind == "export":
        return export_job.carry_out(context, job)
    if job.kind == "evaluation":
        return evaluation_job.carry_out(context, job)
    if "request" in job.document:
        return tuning_job.carry_out(context, job)
    if ASKED in job.document:
        return recipe_job.carry_out(context, job)
    return Outcome(status=_do(context, job))


def _is_for_want_of_room(error: BaseException, home: Path) -> bool:
    """Whether the disk was full: libraries wrap that in errors of their own, so the disk itself is asked, too."""
    cause: BaseException | None = error
    while cause is not None:
        if is_disk_full(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return shutil.disk_usage(home).free < _LEAST_FREE_BYTES


def _end(error: Exception, code: int) -> NoReturn:
    """Leave with this very code: on a full disk the log has no room either, and Python would make it another code."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
    os._exit(code)


def _do(context: Context, job: Job) -> Literal["succeeded", "paused", "failed"]:
    """Begin the run of the job, or go on with it where an earlier attempt has begun it."""
    from luthier.core.errors import NotFoundError
    from luthier.core.recipe import Recipe
    from luthier.service import training

    try:
        status = context.runs.get(job.run_id).status
    except NotFoundError:
        recipe = Recipe.model_validate_json(json.dumps(job.document["recipe"]))
        outcome = training.train(context, recipe, base_dir=Path(), run_id=job.run_id)
    else:
        if status == "succeeded":  # the attempt before died between the end of its run and its last word
            return "succeeded"
        outcome = training.resume(context, job.run_id)
    return "paused" if outcome.record.status == "paused" else "succeeded"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
