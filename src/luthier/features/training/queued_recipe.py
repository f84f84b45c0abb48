"""An attempt of a job that holds a recipe of this machine (`luthier jobs submit`). Runs in the child of a worker."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.core.errors import NotFoundError
from luthier.core.recipe import Recipe
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome


def carry_out(context: Context, job: Job) -> Outcome:
    """Begin the run of the job, or go on with it where an earlier attempt has begun it.

    Raises:
        RequestError: The recipe, its rows or its model are wrong, or have changed since the run began.
        DivergedError: The loss or a gradient is no number.
        StorageFullError: The disk is full.
    """
    from luthier.features.training import service as training

    try:
        status = context.runs.get(job.run_id).status
    except NotFoundError:
        recipe = Recipe.model_validate_json(json.dumps(job.document["recipe"]))
        outcome = training.train(context, recipe, base_dir=Path(), run_id=job.run_id)
    else:
        if status == "succeeded":  # the attempt before died between the end of its run and its last word
            return Outcome(status="succeeded")
        outcome = training.resume(context, job.run_id)
    return Outcome(status="paused" if outcome.record.status == "paused" else "succeeded")
