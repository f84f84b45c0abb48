"""The process that does one attempt of a job: what the worker's guard starts.

    python -m luthier.service.job_child HOME FOLDER

FOLDER is the attempt's own. It holds `job.json`, which says what is to be done; the last act is to write the outcome
into it. Ends as the run ends: paused after SIGTERM, with a checkpoint; what a person has to correct is an outcome, too.
A full disk or a database that stays away is none: then it ends with `NOT_NOW`, and the job goes on when there is room.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from luthier.core.job import Job

if TYPE_CHECKING:
    from luthier.service.context import Context

JOB_NAME = "job.json"
_PATIENCE_SECONDS: Final = 60.0  # the worker's own ends with the lease


def main(home: Path, folder: Path) -> None:
    """Do the job that stands in the folder."""
    from luthier.core.errors import LuthierError, StorageFullError, UnreachableError
    from luthier.core.kernel_cache import keep_few_kernels
    from luthier.core.threads import wait_briefly
    from luthier.jobs.process import Outcome, write_outcome
    from luthier.service.context import Context
    from luthier.service.tuning_job import carry_out

    wait_briefly()
    keep_few_kernels()
    job = Job.model_validate_json((folder / JOB_NAME).read_bytes())
    try:
        with Context.open(home, database_patience_seconds=_PATIENCE_SECONDS) as context:
            try:
                outcome = carry_out(context, job) if "request" in job.document else Outcome(status=_do(context, job))
            except (StorageFullError, UnreachableError):
                raise
            except LuthierError as error:
                outcome = Outcome(status="failed", error=error.as_json())
            write_outcome(folder, outcome)
    except (StorageFullError, UnreachableError) as error:
        _end_for_now(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _end_for_now(error)


def _end_for_now(error: Exception) -> NoReturn:
    """End at once: the log may lie on the full disk, and what cannot be written there would change the exit code."""
    from luthier.jobs.process import NOT_NOW

    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{error}\n".encode())
    os._exit(NOT_NOW)


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
