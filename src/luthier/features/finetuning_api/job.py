"""An attempt of a fine-tuning job in a worker's child: validates its files or trains, and reports the progress.

The reporter turns training events into job events, stores checkpoints as models, and records the outcome.
"""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final

from luthier.core.errors import (
    DataError,
    LuthierError,
    ModelSourceError,
    NotFoundError,
    OverlongError,
    RequestError,
    StorageFullError,
    UnreachableError,
    library_words_hidden,
)
from luthier.core.events import Event, SnapshotSaved, StepDone, ValidationDone, WarningRaised
from luthier.core.ids import sha256_bytes
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.records.base_model import LocalModel
from luthier.core.records.fine_tuning import MIN_EXAMPLES, FineTuningRequest
from luthier.core.run import TrainResult
from luthier.core.system.files import scratch_folder
from luthier.core.text.counted import counted
from luthier.features.finetuning_api.service import model_id, plan_found, recipe_of
from luthier.features.models.store import TunedModel
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths
from luthier.platform.jobs.attempt import own_copy
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome


@dataclass(frozen=True, slots=True)
class _Laid:
    """The local copy of a file of the project for the job. param: the field of the request that names it."""

    param: str
    file_id: str
    path: Path


def carry_out(context: Context, job: Job) -> Outcome:
    """Do what the lane of the job says: look at its files, or train. What is wrong with them is an outcome, too.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: A server or the database cannot be reached; the job is tried again.
    """
    request = FineTuningRequest.model_validate(job.document["request"])
    # Filled by `_lay_out` as it goes, so that an error in the second file can still name the first.
    laid: list[_Laid] = []
    try:
        with library_words_hidden():
            _lay_out(context, job, request, laid)
            paths = {one.param: one.path for one in laid}
            recipe = recipe_of(
                request,
                _base_model(context, job),
                paths["training_file"],
                paths.get("validation_file"),
                # Found by the validation lane, so that training validates at the ends of epochs.
                job.document.get("found", {}).get("validate_every_steps"),
            )
            return _validate(context, request, recipe) if job.lane == "validate" else _train(context, job, recipe)
    except (StorageFullError, UnreachableError):
        raise  # no fault of the job: it is tried again
    except LuthierError as error:
        failed = _as_error(error, request, laid, is_validating=job.lane == "validate")
        # The base model may be a folder anywhere on this machine.
        return Outcome(status="failed", error=redact_paths(failed, home_paths(context)))


def _base_model(context: Context, job: Job) -> LocalModel:
    """The base model. One that is gone is no fault of the job's files, which other things that are not found are."""
    from luthier.ml.inference.models import sources

    try:
        return sources.pull(job.document["base_model"], context.home, context.progress)
    except NotFoundError as error:
        raise ModelSourceError(error.came, expected=error.expected, do=error.do) from error


def _validate(context: Context, request: FineTuningRequest, recipe: Recipe) -> Outcome:
    """All that can be found out without training: formats, masks, lengths, and the plan itself."""
    from luthier.features.planning.service import prepare

    prepared = prepare(context, recipe, base_dir=Path())
    num_examples = prepared.plan.data.train.num_examples
    # Counted after preparation: rows that were left out do not train anything.
    if num_examples < MIN_EXAMPLES:
        raise DataError(
            f"{recipe.data.train} has {counted(num_examples, 'example')}",
            expected=f"at least {MIN_EXAMPLES}",
            do="add rows, and upload the file again",
        )
    return Outcome(status="validated", found=plan_found(request, prepared.plan))


def _train(context: Context, job: Job, recipe: Recipe) -> Outcome:
    """Begin the run of the job, or continue it where an earlier attempt has begun it."""
    from luthier.features.planning.judges import report_grading
    from luthier.features.training import service as training
    from luthier.features.training.launchers.here import InProcessLauncher

    report_grading(context, job)
    reporter = JobReporter(context, job)
    launcher = InProcessLauncher(num_snapshots=NUM_CHECKPOINTS, keeps_snapshot=reporter.is_deployed)
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
    """Give the job its own files. Raises NotFoundError where a file is gone and has no local copy."""
    for param, stem in (("training_file", "training"), ("validation_file", "validation")):
        file_id = getattr(request, param)
        if file_id is None:
            continue
        laid.append(_Laid(param, file_id, own_copy(context, job, file_id, stem)))


def _as_error(
    error: LuthierError, request: FineTuningRequest, laid: list[_Laid], *, is_validating: bool
) -> dict[str, Any]:
    """Ours, with what OpenAI's clients read in addition.

    Files go by the ids and names that the client knows them by.
    """
    document = error.as_json()
    message = error.in_one_line
    if isinstance(error, OverlongError) and is_validating:
        # Its own advice names settings of a recipe, which a client of this API cannot set.
        do = "shorten or split these rows, and upload the file again; none is cut off silently"
        message = f"{error.came}; expected: rows within the context of the model; what to do: {do}"
    param = _missing_file(error, request)
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


def _missing_file(error: LuthierError, request: FineTuningRequest) -> str | None:
    """The field of the request with a file that was deleted before the job had copied it; None where none was."""
    if not isinstance(error, NotFoundError):
        return None
    params = (param for param in ("training_file", "validation_file") if getattr(request, param) is not None)
    return next((param for param in params if repr(getattr(request, param)) in error.came), None)


NUM_CHECKPOINTS: Final = 3
"""As the hosted service: of the last three epochs; those that are deployed stay in addition."""
_ACCURACY: Final = "token_accuracy"
_HEADER: Final = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


class JobReporter:
    """Receives the events of a job's run before the checkpoint that makes them final, so each is reported once.

    What an attempt repeats is the same and has the same code. A step after which a validation is due is reported
    together with it.
    """

    def __init__(self, context: Context, job: Job) -> None:
        self.context, self.job, self.model_id = context, job, model_id(job)
        self._step: StepDone | None = None

    def listen(self, event: Event) -> None:
        """Report one event."""
        if isinstance(event, StepDone):
            self._step = event
            # OpenAI's metrics event has the training and validation figures of a step, so the step waits for both.
            if not self._is_validation_due(event.step):
                self._tell_step(event, None)
        elif isinstance(event, ValidationDone):
            if (step := self._step_before(event)) is not None:
                self._tell_step(step, event)
        elif isinstance(event, SnapshotSaved):
            self._keep_checkpoint(event)
        elif isinstance(event, WarningRaised) and event.code == "grader_failed":
            self.context.job_events.append(self.job.job_id, "grader-failed", event.message, level="warn")

    def finish(self, result: TrainResult) -> dict[str, Any]:
        """Make the outcome a model and its figures a file; returns what is kept with the job.

        trained_tokens: all tokens that went through the training, prompts too and padding not: epochs times those of
        the file. May be done over again.
        """
        assert result.adapter_path is not None
        self.context.tuned_models.add(self._model(self.model_id, Path(result.adapter_path)))
        file_id = self._result_file()
        self.context.job_events.append(self.job.job_id, "model", f"New fine-tuned model created: {self.model_id}")
        return {
            "fine_tuned_model": self.model_id,
            "trained_tokens": result.num_tokens,
            "result_files": [file_id],
        }

    @cached_property
    def _plan(self) -> Plan:
        """Of the run, which is there by the time of its first event."""
        return self.context.runs.plan(self.job.run_id)

    def _is_validation_due(self, step: int) -> bool:
        plan = self._plan
        if plan.data.validation is None:
            return False
        # The last step is validated even where the interval does not divide the number of steps.
        return step == plan.training.num_steps or step % plan.training.validate_every_steps == 0

    def _step_before(self, event: ValidationDone) -> StepDone | None:
        """The step that was validated; from the store where there was a pause between the two."""
        if self._step is not None and self._step.step == event.step:
            return self._step
        # After a resume this object is new and has not seen the step.
        steps = [e for e in self.context.runs.events(self.job.run_id) if isinstance(e, StepDone)]
        return next((e for e in steps if e.step == event.step), None)

    def _tell_step(self, step: StepDone, validation: ValidationDone | None) -> None:
        total = self._plan.training.num_steps
        message = f"Step {step.step}/{total}: training loss={step.loss:.2f}"
        if validation is not None:
            message += f", validation loss={validation.loss:.2f}, full validation loss={validation.loss:.2f}"
        message += _rewards_of(step, validation)
        data: dict[str, float | None] = {
            "step": step.step,
            "total_steps": total,
            "train_loss": step.loss,
            "train_mean_token_accuracy": step.measures.get(_ACCURACY),
            **_of_validation(validation),
        }
        # The code `step-N` makes the event unique: a step that is trained again after a crash is not reported twice.
        self.context.job_events.append(self.job.job_id, f"step-{step.step}", message, data=data)

    def _keep_checkpoint(self, event: SnapshotSaved) -> None:
        """Make a checkpoint a model that can be asked, and forget the oldest, unless it is deployed."""
        names = {
            "train_loss": ("train_loss",),
            "train_token_accuracy": ("train_mean_token_accuracy",),
            "valid_loss": ("valid_loss", "full_valid_loss"),
            "valid_token_accuracy": ("valid_mean_token_accuracy", "full_valid_mean_token_accuracy"),
        }
        metrics = {name: value for key, value in event.metrics.items() for name in names[key]}
        name = self._checkpoint_name(event.step)
        models = self.context.tuned_models
        kept = sorted(m.step for m in models.list(self.job.project_id, job_id=self.job.job_id) if m.step is not None)
        if len([step for step in kept if step > event.step]) < NUM_CHECKPOINTS:  # else it is done over again
            # Derived from the name, so a repeated attempt makes the same id.
            checkpoint_id = f"ftckpt_{sha256_bytes(name.encode())[:24]}"
            models.add(self._model(name, Path(event.path), event.step, checkpoint_id, metrics))
            # `kept` was read before the add, so the union is needed.
            for step in sorted({*kept, event.step})[:-NUM_CHECKPOINTS]:
                # As its weights: what is deployed continues answering.
                if not self.is_deployed(step):
                    self._forget(self._checkpoint_name(step))
        self.context.job_events.append(
            self.job.job_id, f"checkpoint-{event.step}", f"Checkpoint created at step {event.step}"
        )

    def is_deployed(self, step: int) -> bool:
        """Whether a deployment, of any project, routes to the checkpoint of a step."""
        return bool(self.context.deployments.routing_to(self._checkpoint_name(step)))

    def _checkpoint_name(self, step: int) -> str:
        """The form of name that OpenAI gives to checkpoints."""
        return f"{self.model_id}:ckpt-step-{step}"

    def _forget(self, name: str) -> None:
        try:
            self.context.tuned_models.delete(self.job.project_id, name)
        except NotFoundError:  # its project has deleted it before
            return

    def _model(
        self,
        name: str,
        adapter: Path,
        step: int | None = None,
        checkpoint_id: str | None = None,
        metrics: dict[str, float] | None = None,
    ) -> TunedModel:
        return TunedModel(
            model_id=name,
            project_id=self.job.project_id,
            job_id=self.job.job_id,
            run_id=self.job.run_id,
            base_model=self.job.document["base_model"],
            adapter_path=str(adapter),
            step=step,
            checkpoint_id=checkpoint_id,
            metrics=metrics or {},
        )

    def _result_file(self) -> str:
        """The figures of each step as a file of the project; the one that an attempt before has made, where it has."""
        from luthier.platform.files import service as files

        filename, project_id = f"step_metrics_{self.job.job_id}.csv", self.job.project_id
        # By its name, which holds the job id: the attempt before may have died after storing it.
        known, _ = files.list_files(self.context, project_id, purpose="fine-tune-results")
        for file in known:
            if file.filename == filename:
                return file.file_id
        content = step_metrics(self.context.runs.events(self.job.run_id))
        # OpenAI's own result files are base64 of the CSV; clients that decode them need this setting.
        if self.context.settings.result_files_base64:
            content = base64.b64encode(content)
        with scratch_folder(Path(gettempdir()), "luthier-metrics-") as folder:
            path = folder / filename
            path.write_bytes(content)
            return files.add_file(
                self.context, project_id, path, filename=filename, purpose="fine-tune-results", is_result=True
            ).file_id


def step_metrics(events: list[Event]) -> bytes:
    """The result file: one line a step, cells empty where nothing was validated."""
    validations = {event.step: event for event in events if isinstance(event, ValidationDone)}
    # newline="": csv writes its own line ends, and a text layer would translate them again.
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_HEADER)
    for event in events:
        if isinstance(event, StepDone):
            found = validations.get(event.step)
            valid = (found.loss, found.measures.get(_ACCURACY)) if found else (None, None)
            rows.writerow((event.step, event.loss, event.measures.get(_ACCURACY), *valid))
    return text.getvalue().encode()


def _rewards_of(step: StepDone, validation: ValidationDone | None) -> str:
    """Mean rewards and the share of answers that a grader gave no score, where answers are graded; else nothing."""
    if "reward" not in step.measures:
        return ""
    # The loss of a graded step is near 0 whatever it learns.
    message = f", training reward={step.measures['reward']:.3f}"
    if validation is not None and "reward" in validation.measures:
        message += f", validation reward={validation.measures['reward']:.3f}"
    if missing := step.measures.get("ungraded_fraction"):
        message += f", answers without a score={missing:.1%}"
    return message


def _of_validation(found: ValidationDone | None) -> dict[str, float | None]:
    """Every validation here is of the whole validation file: the two kinds that OpenAI knows are one."""
    loss = None if found is None else found.loss
    accuracy = None if found is None else found.measures.get(_ACCURACY)
    return {
        "valid_loss": loss,
        "full_valid_loss": loss,
        "valid_mean_token_accuracy": accuracy,
        "full_valid_mean_token_accuracy": accuracy,
    }
