"""An attempt of a job of a recipe with files by id: its rows are looked at, or it is trained. In a worker's child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.digest import sha256_bytes
from luthier.core.errors import LuthierError, NotFoundError, StorageFullError, UnreachableError
from luthier.core.library_errors import library_words_hidden
from luthier.core.recipe import Recipe
from luthier.core.run import RunRecord
from luthier.features.files.references import FileReferences, with_files
from luthier.features.models.tuned_records import TunedModel
from luthier.features.training.recipe_jobs import ASKED
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_paths
from luthier.platform.jobs.files import own_copy
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome


def carry_out(context: Context, job: Job) -> Outcome:
    """Do what the lane of the job says: look at its rows, or train. What is wrong with them is an outcome, too."""
    names = FileReferences(context, job.project_id)
    try:
        with library_words_hidden():
            recipe = _recipe_of(context, job, names)
            return _validate(context, recipe) if job.lane == "validate" else _train(context, job, recipe)
    except (StorageFullError, UnreachableError):
        raise  # no fault of the job: it is tried again
    except LuthierError as error:
        return Outcome(status="failed", error=redact_paths(error.as_json(), names.path_labels))


def model_id(job: Job) -> str:
    """What the outcome of the job is called: `ft:BASE:PROJECT::ID`, the id made from that of the job."""
    return f"ft:{job.document[ASKED]['base_model']}:{job.project_id}::{sha256_bytes(job.job_id.encode())[:10]}"


def _recipe_of(context: Context, job: Job, names: FileReferences) -> Recipe:
    """The recipe with files of the job's own, which stay when the project deletes those that were named."""
    from luthier.features.recipes.service import recipe_from

    def own(_: str, file_id: Any) -> str:
        # Copied before it is read: a project that deletes the file later must not break a resume.
        path = str(own_copy(context, job, str(file_id), str(file_id)))  # so that errors of rows name it by its id
        names.shown[path] = str(file_id)
        return path

    def model(place: str, name: Any) -> str:
        return str(job.document["base_model"]) if place == "base_model" else names.model(place, name)

    names.shown[job.document["base_model"]] = job.document[ASKED]["base_model"]
    return recipe_from(with_files(job.document[ASKED], file=own, model=model), base_dir=Path("/"))


def _validate(context: Context, recipe: Recipe) -> Outcome:
    """All that can be found out without training: formats, masks, lengths, leaks, and the plan itself."""
    from luthier.features.planning.service import prepare

    plan = prepare(context, recipe, base_dir=Path("/")).plan
    return Outcome(status="validated", found={"plan_hash": plan.hash, "num_steps": plan.training.num_steps})


def _train(context: Context, job: Job, recipe: Recipe) -> Outcome:
    """Begin the run of the job, or go on with it where an earlier attempt has begun it."""
    from luthier.features.training import service as training

    try:
        record = context.runs.get(job.run_id)
    except NotFoundError:
        record = training.train(context, recipe, base_dir=Path("/"), run_id=job.run_id).record
    else:
        if record.status != "succeeded":  # else the attempt before died between the end of its run and its last word
            record = training.resume(context, job.run_id).record
    if record.status == "paused":
        return Outcome(status="paused")
    return Outcome(status="succeeded", found={"fine_tuned_model": _keep_model(context, job, record)})


def _keep_model(context: Context, job: Job, record: RunRecord) -> str:
    """Make the outcome a model that can be asked by name; may be done over again."""
    assert record.result is not None
    assert record.result.adapter_path is not None
    made = context.tuned_models.add(
        TunedModel(
            model_id=model_id(job),
            project_id=job.project_id,
            job_id=job.job_id,
            run_id=job.run_id,
            base_model=job.document["base_model"],
            adapter_path=record.result.adapter_path,
        )
    )
    context.job_events.append(job.job_id, "model", f"New fine-tuned model created: {made.model_id}")
    return made.model_id
