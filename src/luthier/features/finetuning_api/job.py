"""An attempt of a job of the API: its files are looked at, or it is trained. Runs in the child of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import (
    DataError,
    LuthierError,
    ModelSourceError,
    NotFoundError,
    RequestError,
    StorageFullError,
    UnreachableError,
)
from luthier.core.library_errors import library_words_hidden
from luthier.core.recipe import Recipe
from luthier.core.records.fine_tuning import MIN_EXAMPLES, FineTuningRequest
from luthier.features.finetuning_api.recipe import plan_found, recipe_of
from luthier.platform.home.context import Context
from luthier.platform.jobs.files import own_copy
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome


@dataclass(frozen=True, slots=True)
class _Laid:
    """A file of the project as it lies here for the job. param: the field of the request that names it."""

    param: str
    file_id: str
    path: Path


def carry_out(context: Context, job: Job) -> Outcome:
    """Do what the lane of the job says: look at its files, or train. What is wrong with them is an outcome, too."""
    from luthier.ml.inference.models import sources

    request = FineTuningRequest.model_validate(job.document["request"])
    # Filled by `_lay_out` as it goes, so that an error in the second file can still name the first.
    laid: list[_Laid] = []
    try:
        with library_words_hidden():
            _lay_out(context, job, request, laid)
            paths = {one.param: one.path for one in laid}
            recipe = recipe_of(
                request,
                sources.pull(job.document["base_model"], context.home, context.progress),
                paths["training_file"],
                paths.get("validation_file"),
                # Found by the validation lane, so that training validates at the ends of epochs.
                job.document.get("found", {}).get("validate_every_steps"),
            )
            return _validate(context, request, recipe) if job.lane == "validate" else _train(context, job, recipe)
    except (StorageFullError, UnreachableError):
        raise  # no fault of the job: it is tried again
    except LuthierError as error:
        return Outcome(status="failed", error=_as_error(error, laid, is_validating=job.lane == "validate"))


def _validate(context: Context, request: FineTuningRequest, recipe: Recipe) -> Outcome:
    """All that can be found out without training: formats, masks, lengths, and the plan itself."""
    from luthier.features.planning.service import prepare

    prepared = prepare(context, recipe, base_dir=Path())
    num_examples = prepared.plan.data.train.num_examples
    # Counted after preparation: rows that were left out do not train anything.
    if num_examples < MIN_EXAMPLES:
        raise DataError(
            f"{recipe.data.train} has {num_examples} examples",
            expected=f"at least {MIN_EXAMPLES}",
            do="add rows, and upload the file again",
        )
    return Outcome(status="validated", found=plan_found(request, prepared.plan))


def _train(context: Context, job: Job, recipe: Recipe) -> Outcome:
    """Begin the run of the job, or go on with it where an earlier attempt has begun it."""
    from luthier.features.finetuning_api.reporter import NUM_CHECKPOINTS, JobReporter
    from luthier.features.training import service as training
    from luthier.features.training.launchers.here import InProcessLauncher

    reporter, launcher = JobReporter(context, job), InProcessLauncher(num_snapshots=NUM_CHECKPOINTS)
    try:
        # The run id was fixed when the job was made, so a retried attempt finds the run of the one before.
        record = context.runs.get(job.run_id)
    except NotFoundError:
        record = training.train(
            context, recipe, base_dir=Path(), run_id=job.run_id, launcher=launcher, listener=reporter.listen
        ).record
    else:
        if record.status != "succeeded":  # else the attempt before died between the end of its run and its last word
            record = training.resume(context, job.run_id, launcher=launcher, listener=reporter.listen).record
    # A run that ended without a result was stopped from outside and can be resumed like a paused one.
    if record.status == "paused" or record.result is None:
        return Outcome(status="paused")
    return Outcome(status="succeeded", found=reporter.finish(record.result))


def _lay_out(context: Context, job: Job, request: FineTuningRequest, laid: list[_Laid]) -> None:
    """Give the job files of its own. Raises NotFoundError where a file is gone and was never laid out here."""
    for param, stem in (("training_file", "training"), ("validation_file", "validation")):
        file_id = getattr(request, param)
        if file_id is None:
            continue
        laid.append(_Laid(param, file_id, own_copy(context, job, file_id, stem)))


def _as_error(error: LuthierError, laid: list[_Laid], *, is_validating: bool) -> dict[str, Any]:
    """Ours, with what OpenAI's clients read beside it. Files go by the ids and names that the client knows them by."""
    document = error.as_json()
    message = f"{error.came}; expected: {error.expected}; what to do: {error.do}"
    param = None
    for one in laid:
        # Clients know files by id only, and paths of this machine must not leave it.
        if str(one.path) in message or one.path.name in message:
            param = one.param
            message = message.replace(str(one.path), one.file_id).replace(one.path.name, one.file_id)
    code = "training_failed"
    if isinstance(error, ModelSourceError):
        code, param = "model_unavailable", "model"
    elif isinstance(error, RequestError) and is_validating:
        param = param or "training_file"
        code = f"invalid_{param}"
    return document | {"code": code, "message": message, "param": param}
