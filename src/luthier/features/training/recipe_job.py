"""Use case: queue a recipe of a project, whose files are named by id; an attempt validates its rows, then trains.

Attempts run in the child of a worker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller
from luthier.core.errors import (
    LuthierError,
    MemoryShortError,
    NotFoundError,
    StorageFullError,
    UnreachableError,
    library_words_hidden,
)
from luthier.core.ids import new_id, tuned_name
from luthier.core.recipe import Recipe
from luthier.core.run import RunRecord
from luthier.features.files.references import FileReferences, with_chosen_columns, with_files
from luthier.features.models.store import TunedModel
from luthier.features.trackers.service import refuse_locations
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_paths
from luthier.platform.jobs.attempt import own_copy
from luthier.platform.jobs.records import OPEN, Job
from luthier.platform.processes.process import Outcome

if TYPE_CHECKING:
    from luthier.features.planning.drafts import Started

ASKED: Final = "asked"
"""The key of the requested recipe in the job document."""


def start(context: Context, caller: Caller, recipe: Mapping[str, Any]) -> Job:
    """Queue a recipe; the `run_id` of the job is that of its run, which has a record once it trains.

    Errors that can be detected without reading rows are raised here: keys, values, missing files and models. Rows are
    validated before the job waits to train: errors end the job. `files.references.plan_of` detects them before anything
    is queued.

    Raises:
        RequestError: Files or models are missing.
        RecipeError: Keys or values are wrong; the message names all places.
    """
    asked, base_model = checked(context, caller.project_id, recipe)
    job = Job(
        job_id=new_id("job"),
        kind="train",
        document={ASKED: asked, "base_model": base_model},
        run_id=new_id("run"),
        project_id=caller.project_id,
        lane="validate",
    )
    facts = {"run_id": job.run_id, "base_model": asked["base_model"], "train": _rows_in_log(asked)}
    with context.database.transaction():
        made = context.jobs.submit(job)
        record(context, caller, "job.created", job.job_id, facts)
    return made


def start_once(context: Context, caller: Caller, recipe: Mapping[str, Any], started: Started) -> Job:
    """Queue the recipe of a draft, unless the run that the draft has started is still open.

    A second click leads to the run of the first one. A page that one comes back to has the same draft: where its run
    has failed, was cancelled or is done, the recipe is queued again.

    Args:
        context: The home.
        caller: Whose project it is.
        recipe: The recipe as plain keys.
        started: What the draft has become; its run is set here.

    Returns:
        The job that makes the run, queued or further on.

    Raises:
        RequestError: Files or models are missing.
        RecipeError: Keys or values are wrong; the message names all places.
    """
    known = None if started.run_id is None else context.jobs.of_run(started.run_id, caller.project_id)
    if known is not None and known.status in OPEN:
        return known
    job = start(context, caller, recipe)
    started.run_id = job.run_id
    return job


def _rows_in_log(asked: Mapping[str, Any]) -> str:
    """The training rows as the audit log names them: by the id of their file, or the ids of several."""
    train = asked["data"]["train"]
    return ", ".join(str(one["path"]) for one in train) if isinstance(train, list) else str(train)


def checked(context: Context, project_id: str, recipe: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The recipe as plain JSON without unset keys, and the name of its base model on this machine.

    Raises:
        RequestError: Files or models are missing.
        RecipeError: Keys or values are wrong.
    """
    from luthier.features.recipes.service import recipe_from

    names = FileReferences(context, project_id)
    recipe = with_chosen_columns(context, project_id, recipe)
    document = with_files(
        recipe, file=lambda place, value: names.stored(place, value).file_id, model=names.model, run=names.run
    )
    complete = recipe_from(document, base_dir=Path())
    refuse_locations(complete)
    # A round trip makes a deep copy of plain JSON types, so that the job does not change with the caller's mapping.
    asked: dict[str, Any] = json.loads(json.dumps(recipe))
    return _without_nothing(asked), complete.base_model


def _without_nothing(document: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nothing(value) if isinstance(value, dict) else value
        for name, value in document.items()
        if value is not None
    }


def carry_out(context: Context, job: Job) -> Outcome:
    """Run the lane of the job: validate its rows, or train. Invalid rows are also an outcome.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: A server or the database cannot be reached; the job is tried again.
    """
    names = FileReferences(context, job.project_id)
    try:
        with library_words_hidden():
            recipe = _recipe_of(context, job, names)
            return _validate(context, recipe) if job.lane == "validate" else _train(context, job, recipe)
    except (StorageFullError, UnreachableError, MemoryShortError):
        raise  # not the job's fault: it is retried
    except LuthierError as error:
        return Outcome(status="failed", error=redact_paths(error.as_json(), names.path_labels))


def model_id(job: Job) -> str:
    """The name of the job's model: `ft:BASE:PROJECT::ID`, with an id derived from that of the job."""
    return tuned_name(job.document[ASKED]["base_model"], job.project_id, "", job.job_id)


def _recipe_of(context: Context, job: Job, names: FileReferences) -> Recipe:
    """The recipe with copies of its files for the job, which remain when the project deletes the originals."""
    from luthier.features.recipes.service import recipe_from

    def own(_: str, file_id: Any) -> str:
        # Copied before reading: a resume must work even if the project deletes the file later.
        path = str(own_copy(context, job, str(file_id), str(file_id)))  # so that errors of rows name it by its id
        names.shown[path] = str(file_id)
        return path

    def model(place: str, name: Any) -> str:
        return str(job.document["base_model"]) if place == "base_model" else names.model(place, name)

    names.shown[job.document["base_model"]] = job.document[ASKED]["base_model"]
    return recipe_from(with_files(job.document[ASKED], file=own, model=model, run=names.run), base_dir=Path("/"))


def _validate(context: Context, recipe: Recipe) -> Outcome:
    """All checks without training: formats, masks, lengths, leaks, and the plan itself."""
    from luthier.features.planning.service import prepare

    plan = prepare(context, recipe, base_dir=Path("/")).plan
    return Outcome(status="validated", found={"plan_hash": plan.hash, "num_steps": plan.training.num_steps})


def _train(context: Context, job: Job, recipe: Recipe) -> Outcome:
    """Begin the run of the job, or resume it if an earlier attempt has begun it."""
    from luthier.features.planning.judges import report_grading
    from luthier.features.training import service as training

    report_grading(context, job)
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
    """Register the result as a model that is available by name; idempotent."""
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
