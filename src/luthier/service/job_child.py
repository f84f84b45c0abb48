"""The process that does one attempt of a job: what the worker's guard starts.

    python -m luthier.service.job_child HOME FOLDER

What another try may mend (a database that does not answer, a full disk) ends it without an outcome, as a crash does.
FOLDER is the attempt's own. It holds `job.json`, which says what is to be done; the last act is to write the outcome
into it. Ends as the run ends: paused after SIGTERM, with a checkpoint; what a person has to correct is an outcome, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.job import Job

if TYPE_CHECKING:
    from luthier.service.context import Context

JOB_NAME = "job.json"


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
    with Context.open(home) as context:
        try:
            outcome = carry_out(context, job) if "request" in job.document else Outcome(status=_do(context, job))
        except (UnreachableError, StorageFullError) as error:
            sys.exit(f"{type(error).__name__}: {error.came}")
        except LuthierError as error:
            outcome = Outcome(status="failed", error=error.as_json())
        write_outcome(folder, outcome)


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
