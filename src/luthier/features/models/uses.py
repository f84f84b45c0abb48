"""Who still needs a model: runs that have not ended, and jobs that wait, with their teacher, judges and base.

A run is resumed with the very weights that it began with, so these must not be deleted before it has ended. Jobs that
have not begun look a deployment up by its name, so that it must not be deleted before they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError
from luthier.core.plan import Plan
from luthier.core.text.counted import counted
from luthier.features.models.names import find_model, nearest_deployment
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import ENDED, OPEN, Job

if TYPE_CHECKING:
    from luthier.core.records.deployment import Deployment

_TEACHER: Final = "teacher"
_MODELS: Final = (_TEACHER, "base_model")
_GRADERS: Final = ("score_model", "label_model")
_EVAL_RUN: Final = "eval_run"
"""The key of a job that carries out a run of the Evals API."""
_MAX_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Use:
    """A run that needs a model.

    Attributes:
        run_id: The run; of other work that waits, its job.
        project_id: Whose run it is.
    """

    run_id: str
    project_id: str


def uses_of(context: Context, name: str, path: str | None = None) -> tuple[Use, ...]:
    """The runs that have not ended and ask a model, or are trained from it; those whose job waits included.

    Args:
        context: The home.
        name: The id of a run, for all that it has made; the name of a tuned model (`ft:...`) for that one alone; or a
            base model, as recipes name it, for its adapters, too.
        path: The folder of a base model.
    """
    found = list[Use]()
    for run_id in context.runs.unfinished():
        project_id = context.runs.project_of(run_id) or DEFAULT_PROJECT
        is_open = run_id != name and not is_given_up(context, run_id, project_id)
        if is_open and _has(context.runs.plan(run_id), name, path):
            found.append(Use(run_id, project_id))
    for job in _waiting(context):
        caller = Caller(project_id=job.project_id)
        asked_names = _models_in(_document(context, job), _MODELS)
        if job.run_id != name and any(_is_meant(context, caller, asked, name) for asked in asked_names):
            found.append(Use(job.run_id or job.job_id, job.project_id))
    return tuple(found)


def uses_of_deployment(context: Context, deployment: Deployment) -> tuple[Use, ...]:
    """The jobs that have not ended and look a deployment up when they begin, as a teacher or a judge.

    Args:
        context: The home.
        deployment: Of any project: a job without one of the name in its own project finds that of another.
    """
    found = list[Use]()
    named = context.deployments.named(deployment.name)
    for job in _waiting(context):
        if deployment.name not in _models_in(_document(context, job), (_TEACHER,)):
            continue
        meant = nearest_deployment(named, (job.project_id, DEFAULT_PROJECT))
        if meant is not None and meant.deployment_id == deployment.deployment_id:
            found.append(Use(job.run_id or job.job_id, job.project_id))
    return tuple(found)


def _waiting(context: Context) -> Iterator[Job]:
    """Jobs that have not ended and whose names of models still count."""
    for job in context.jobs.list(status=OPEN):
        # The plan of a run that has begun names the weights themselves, whatever its request says.
        if not (job.run_id and context.runs.some([job.run_id])):
            yield job


def _document(context: Context, job: Job) -> Any:
    """What a job is asked to do; of a run of the Evals API with its graders, which its eval holds."""
    if _EVAL_RUN not in job.document:
        return job.document
    try:
        run = context.evals.run_of_job(job.job_id)
        criteria = context.evals.get(run.project_id, run.eval_id).testing_criteria
    except NotFoundError:  # deleted meanwhile
        return job.document
    return [grader.model_dump(mode="json") for grader in criteria]


def refuse_in_use(context: Context, caller: Caller, name: str) -> None:
    """Raise ConflictError where runs that have not ended need a model that is to be deleted.

    Args:
        context: The home.
        caller: Who wants to delete it: ids of other projects are not shown.
        name: As for `uses_of`.
    """
    uses = uses_of(context, name)
    if not uses:
        return
    runs = counted(len(uses), "run that has not ended", "runs that have not ended") + _shown(uses, caller)
    raise ConflictError(
        f"{name} is the base, the teacher or the judge of {runs}",
        expected="a model that no run needs: it is resumed with the weights that it began with",
        do="let it end, or cancel it; delete a run that is not to be resumed",
    )


def refuse_named(context: Context, caller: Caller, deployment: Deployment) -> None:
    """Raise ConflictError where jobs that have not ended name a deployment that is to be deleted.

    Args:
        context: The home.
        caller: Who wants to delete it: ids of other projects are not shown.
        deployment: The deployment.
    """
    uses = uses_of_deployment(context, deployment)
    if not uses:
        return
    jobs = counted(len(uses), "job that has not ended", "jobs that have not ended") + _shown(uses, caller)
    raise ConflictError(
        f"the deployment {deployment.name!r} is named as the teacher or a judge by {jobs}",
        expected="a deployment that no waiting job names: the job looks it up when it begins",
        do="let the job begin or end, or cancel it",
    )


def _shown(uses: Sequence[Use], caller: Caller) -> str:
    shown = [use.run_id for use in uses if use.project_id == caller.project_id][:_MAX_NAMED]
    return f" ({', '.join(shown)})" if shown else ""


def is_given_up(context: Context, run_id: str, project_id: str) -> bool:
    """Whether the job of a run has ended: the record of a cancelled run stays as it was."""
    job = context.jobs.of_run(run_id, project_id)
    return job is not None and job.status in ENDED


def _has(plan: Plan, name: str, path: str | None) -> bool:
    asked = [*(plan.objective.judges or ()), *([plan.objective.teacher] if plan.objective.teacher else ())]
    if any(one.name == name for one in asked):
        return True
    places = [place for one in asked for place in (one.path, one.adapter_path) if place is not None]
    places.append(plan.base_model.path)
    # By their places: checkpoints of a run, and whole models in its folder, go by other names.
    return path in places or any(name in Path(place).parts for place in places)


def _models_in(document: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """The names of models in a request, at any depth: of recipes, of a fine-tuning job, of a study.

    Args:
        document: The request.
        keys: That name models, beside those of graders.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            if isinstance(value, str) and (key in keys or (key == "model" and document.get("type") in _GRADERS)):
                yield value
            else:
                yield from _models_in(value, keys)
    elif isinstance(document, list):
        for one in document:
            yield from _models_in(one, keys)


def _is_meant(context: Context, caller: Caller, asked: str, name: str) -> bool:
    if asked == name:
        return True
    try:
        found = find_model(context, asked, caller)
    except LuthierError:
        return False  # a name that means nothing keeps nothing
    if name in (found.run_id, found.name):
        return True
    of_run = {} if found.run_id is None else context.runs.some([found.run_id])
    return any(record.base_model == name for record in of_run.values())
