"""An attempt of a workflow's job: it begins the workflow, or continues it with the stage that it was in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import (
    LuthierError,
    MemoryShortError,
    NotFoundError,
    StorageFullError,
    UnreachableError,
    WorkError,
)
from luthier.core.errors import library_words_hidden as words_hidden
from luthier.core.import_string import import_string
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.core.workflows.study import Study, Trial
from luthier.features.files.references import FileReferences, with_chosen_columns, with_files
from luthier.features.studies.views import study_folders
from luthier.features.workflows.forms import fields_of, find_form, recipe_of
from luthier.features.workflows.orders import WorkflowOrder, local_files, order_of, teacher_of
from luthier.features.workflows.views import folders_of
from luthier.platform.auth.access_check import AccessCheck
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_paths
from luthier.platform.jobs.attempt import JobProgress, exit_on_sigterm, own_copy
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome
from luthier.platform.workflows.engine import PausedError

_PAUSED: Final = "It was paused, and continues with this stage."


@dataclass(frozen=True, slots=True)
class Work:
    """What a runner gets.

    Attributes:
        context: The home.
        job: The job.
        order: What was asked.
        values: Of every field: the one that was given, else the default of the command; files are paths, models are
            as recipes name them.
        tell: Called with each stage that changes.
    """

    context: Context
    job: Job
    order: WorkflowOrder
    values: dict[str, Any]
    tell: Callable[[Pipeline, Stage], None]

    @property
    def is_begun(self) -> bool:
        """Whether an earlier attempt has stored the workflow."""
        try:
            self.context.pipelines.get(self.order.workflow_id)
        except NotFoundError:
            return False
        return True


def carry_out(context: Context, job: Job) -> Outcome:
    """Begin the workflow or continue it. On SIGTERM it pauses, and what its stages have stored is kept.

    It fails at the next stage or trial once the key or the member that started or resumed it has lost access.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: A server or the database cannot be reached; the job is tried again.
    """
    order, names = order_of(job), FileReferences(context, job.project_id)
    # Runs of a workflow have no job of their own: this says whose they are.
    context.owner_project_id = job.project_id
    context.progress = progress = JobProgress(context, job)
    # Before each stage and trial, those of workflows inside this one included.
    context.check_access = AccessCheck(context, order.caller, "train").require

    def tell(pipeline: Pipeline, stage: Stage) -> None:
        place = [one.name for one in pipeline.stages].index(stage.name) + 1
        progress.report(f"Stage {place} of {len(pipeline.stages)}, {stage.name}: {stage.status}")

    try:
        # Inside the block SIGTERM raises SystemExit: stages close their files and children on the way out.
        with words_hidden(), exit_on_sigterm():
            context.check_access()
            values = _values(context, job, order, names)
            work = Work(context, job, order, values, tell)
            # By name: a worker loads one workflow, and not the libraries of all of them.
            outcome: Outcome = import_string(find_form(order.form).runner)(work)
            return outcome
    except SystemExit:
        _note_pause(context, order)
        return Outcome(status="paused")
    except PausedError:
        return Outcome(status="paused")
    except (StorageFullError, UnreachableError, MemoryShortError):
        raise  # no fault of the job: it is tried again
    except LuthierError as error:
        shown = names.path_labels | _record_folders(context, order)
        return Outcome(status="failed", error=redact_paths(error.as_json(), shown))


def _note_pause(context: Context, order: WorkflowOrder) -> None:
    """A stage that was ended by the signal is paused; without this it would be shown as interrupted."""
    try:
        pipeline = context.pipelines.get(order.workflow_id)
    except NotFoundError:
        return  # a study, whose trials have their own states, or nothing was begun yet
    stage = pipeline.next_stage
    if stage is not None and stage.status == "running":
        context.pipelines.save(pipeline.changed(stage.model_copy(update={"status": "paused", "reason": _PAUSED})))


def _record_folders(context: Context, order: WorkflowOrder) -> dict[str, str]:
    """The folders that a workflow of a command names on this machine, with what is shown in their place."""
    with suppress(NotFoundError):
        if order.form == "tune":
            return dict.fromkeys(study_folders(context.studies.get(order.workflow_id)), "")
        return dict.fromkeys(folders_of(context, context.pipelines.get(order.workflow_id)), "")
    return {}  # nothing was begun: the order itself names files by their ids


def _values(context: Context, job: Job, order: WorkflowOrder, names: FileReferences) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields_of(order.form):
        entry, given = field.entry, order.values.get(field.entry.name)
        if given is None:
            found[entry.name] = field.default
        elif entry.kind == "model":
            found[entry.name] = names.model(entry.label, given)
        elif entry.kind == "models":
            found[entry.name] = tuple(names.model(entry.label, one) for one in given)
        elif entry.kind == "teacher":
            found[entry.name] = teacher_of(names, given)
        else:
            found[entry.name] = given
    return found | dict(local_files(context, job, order, names))


def _done(workflow_id: str) -> Outcome:
    return Outcome(status="succeeded", found={"workflow_id": workflow_id})


def run_model_comparison(work: Work) -> Outcome:
    """`luthier compare-models`."""
    from luthier.features.workflows.model_comparison import workflow
    from luthier.features.workflows.model_comparison.request import ModelComparisonRequest

    given, showdown_id = work.values, work.order.workflow_id
    if not work.is_begun:
        request = ModelComparisonRequest(
            models=given["models"],
            data=given["data"],
            held_out=given["held_out"],
            hours=float(given["budget_hours"]),
            mapping=given["mapping"] or None,
            metric=given["metric"],
            few_shot=given["few_shot"],
            instruction=given["instruction"],
            max_new_tokens=given["max_new_tokens"],
            most_judged=given["max_samples"],
            method=given["method"],
            seed=given["seed"],
            is_probed=given["probe"],
        )
        # The id was drawn with the order, so that an attempt after a kill finds what this one has begun.
        workflow.begin(work.context, request, caller=work.order.caller, showdown_id=showdown_id)
    workflow.go_on(work.context, showdown_id, tell=work.tell, caller=work.order.caller)
    return _done(showdown_id)


def run_automl(work: Work) -> Outcome:
    """`luthier automl`."""
    from luthier.core.workflows.pipeline import AutomlSpec
    from luthier.features.workflows.automl import workflow

    given, auto_id = work.values, work.order.workflow_id
    if not work.is_begun:
        asked = AutomlSpec(
            data=str(given["data"]),
            goal=given["goal"],
            hours=float(given["budget_hours"]),
            models=tuple(given["models"] or ()),
            map=given["mapping"] or None,
            group_by=given["group_by"],
            metric=given["metric"],
            max_new_tokens=given["max_new_tokens"],
            most_judged=given["max_samples"],
            most_trials=given["trials"],
            seed=given["seed"],
            always_tunes=given["tune_anyway"],
            is_probed=given["probe"],
        )
        workflow.begin(work.context, asked, caller=work.order.caller, auto_id=auto_id)
    workflow.go_on(work.context, auto_id, tell=work.tell, caller=work.order.caller)
    return _done(auto_id)


def run_retraining(work: Work) -> Outcome:
    """`luthier retrain`."""
    from luthier.features.workflows.retraining import workflow
    from luthier.features.workflows.retraining.request import RetrainRequest

    given, retrain_id, caller = work.values, work.order.workflow_id, work.order.caller
    if not work.is_begun:
        request = RetrainRequest(
            model=given["model"],
            from_traffic=given["from_traffic"],
            review=given["review"],
            panels=tuple(given["panel"] or ()),
            start=given["start"],
            canary=given["canary"],
            min_rows=given["min_rows"],
        )
        workflow.begin(work.context, caller, request, pipeline_id=retrain_id)
    workflow.go_on(work.context, caller, retrain_id, tell=work.tell)
    return _done(retrain_id)


def run_distillation(work: Work) -> Outcome:
    """`luthier distill`. Its id follows from the request, so the same request continues."""
    from luthier.features.workflows.distillation.request import DistilRequest
    from luthier.features.workflows.distillation.workflow import distil

    given = work.values
    lines = (line.strip() for line in str(given["overrides"] or "").splitlines())
    request = DistilRequest(
        teacher=given["teacher"],
        student=f"layers:{given['layers']}" if given["layers"] else given["student"],
        data=given["data"],
        kind=given["kind"],
        held_out=float(given["held_out"]),
        overrides=tuple(line for line in lines if line),
        mapping=given["mapping"] or None,
        max_new_tokens=given["max_new_tokens"],
    )
    found = distil(work.context, request, caller=work.order.caller, tell=work.tell)
    return Outcome(status="paused") if found.status == "paused" else _done(found.student_id)


def _study_recipe(work: Work) -> dict[str, Any]:
    """The recipe of a study with the job's own copies of all files that it names."""
    context, job, names = work.context, work.job, FileReferences(work.context, work.job.project_id)
    given = work.order.values
    copies = {str(given[name]): str(path) for name, path in work.values.items() if isinstance(path, Path)}

    def own(_place: str, value: Any) -> str:
        # Files of fields are copied already, under names that people know.
        return copies.get(str(value)) or str(own_copy(context, job, str(value), str(value)))

    # By ids first: the columns that were chosen for a file, and its name among several sources, are found by its id.
    document = with_chosen_columns(context, job.project_id, recipe_of("tune", given))
    return with_files(document, file=own, model=names.model, run=names.run)


def run_study(work: Work) -> Outcome:
    """`luthier tune`.

    Raises:
        WorkError: The budget ended before the final run.
    """
    from luthier.features.recipes.service import recipe_from
    from luthier.features.studies import service as studies
    from luthier.features.studies.cli_options import goals, sampler

    given, study_id, progress = work.values, work.order.workflow_id, work.context.progress
    hours: float | None = None
    try:
        # Only an order that resumes it with a larger budget changes the budget that it has. The one that began it has
        # the budget of then: a command may have given it a larger one since.
        study, asked = work.context.studies.get(study_id), work.order.values.get("budget_hours")
        if study.needs_hours is not None:
            hours = asked if set(work.order.values) == {"budget_hours"} else max(asked or 0.0, study.spec.hours)
    except NotFoundError:
        recipe = recipe_from(_study_recipe(work), base_dir=Path("/"))
        request = studies.StudyRequest(
            recipe=recipe,
            hours=float(given["budget_hours"]),
            most_trials=given["trials"] or 40,
            space=given["space"],
            sampler=sampler(given["sampler"] or "tpe"),
            seed=given["seed"] or 0,
            workers=given["workers"] or 1,
            goals=goals(given["objective"] or "quality"),
            knows_others=given["warm_start"],
        )
        studies.begin(work.context, request, project_id=work.job.project_id, study_id=study_id)

    def tell(_study: Study, trial: Trial) -> None:
        if isinstance(progress, JobProgress) and trial.state in ("paused", "stopped", "done", "failed"):
            progress.report(studies.trial_line(trial))

    found = studies.go_on(work.context, study_id, hours=hours, tell=tell)
    # No pause that a resumed job could leave by itself: the same budget would end again at once.
    if found.status == "paused" and found.needs_hours is not None:
        raise WorkError(
            f"the budget of {found.spec.hours:.3g} h ended before the final run",
            expected=f"a budget of {found.needs_hours:.2g} h, counted from the beginning of the study",
            do=f"resume it with a larger budget, on its page or by {found.way_on}",
        )
    return Outcome(status="paused") if found.status == "paused" else _done(study_id)
