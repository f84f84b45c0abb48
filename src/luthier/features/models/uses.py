"""Who still needs a model: runs that have not ended, jobs of every kind with all models that they name, and commands.

A run is resumed with the very weights that it began with, so these must not be deleted before it has ended. Jobs look
the names in their documents up when they begin or resume; `KindRules.models` says where each kind names models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, LuthierError
from luthier.core.ids import is_id
from luthier.core.import_string import import_string
from luthier.core.plan import Plan
from luthier.core.text.counted import counted
from luthier.features.models.names import (
    ResolvedModel,
    base_of_adapter,
    find_unheld,
    is_adapter_folder,
    nearest_deployment,
)
from luthier.platform.home.context import Context
from luthier.platform.jobs.kinds import models_of
from luthier.platform.jobs.named_models import (
    BASE_MODEL,
    NamedModel,
    UnreadModelsError,
    models_in,
    models_read_ahead,
)
from luthier.platform.jobs.records import ENDED, OPEN, Job

if TYPE_CHECKING:
    from luthier.core.records.deployment import Deployment
    from luthier.platform.home.model_leases import LeasedModel

_MAX_NAMED: Final = 3
_MAX_ATTEMPTS: Final = 5
Removed = TypeVar("Removed")


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
        asked = _named_models(context, job)
        if job.run_id != name and any(_is_meant(context, job, one, name, path) for one in asked):
            found.append(Use(job.run_id or job.job_id, job.project_id))
    return tuple(found)


def commands_using(context: Context, name: str, path: str | None = None) -> tuple[str, ...]:
    """The commands and calls of the Python API that use a model now, such as `luthier eval (process 4711)`.

    Args:
        context: The home.
        name: As for `uses_of`.
        path: The folder of a base model.
    """
    from luthier.platform.home.model_leases import leased_models

    found = (one for one in leased_models(context.settings.model_leases_folder) if _is_leased(context, one, name, path))
    return tuple(dict.fromkeys(f"{one.command} (process {one.process_id})" for one in found))


def refuse_used_by_commands(context: Context, name: str, path: str | None = None) -> None:
    """Raise ConflictError where a command or a call of the Python API uses a model that is to be deleted.

    Args:
        context: The home.
        name: As for `uses_of`.
        path: The folder of a base model.
    """
    if commands := commands_using(context, name, path):
        shown = ", ".join(commands[:_MAX_NAMED])
        raise ConflictError(
            f"{name} is in use by {shown}",
            expected="a model that no command uses",
            do="wait until the command has ended, or stop it",
        )


def uses_of_deployment(context: Context, deployment: Deployment) -> tuple[Use, ...]:
    """The jobs that have not ended and look a deployment up when they begin or resume.

    Args:
        context: The home.
        deployment: Of any project: a job without one of the name in its own project finds that of another.
    """
    found = list[Use]()
    named = context.deployments.named(deployment.name)
    for job in _waiting(context):
        for asked in _named_models(context, job):
            if asked.name == deployment.name and _means(job, asked, named, deployment):
                found.append(Use(job.run_id or job.job_id, job.project_id))
                break
    return tuple(found)


def remove_unused(context: Context, check: Callable[[], object], remove: Callable[[], Removed]) -> Removed:
    """Check that nothing needs a model, and remove it, in one transaction that reads no rows of batches.

    The rows of batches that wait are read before it. Where another batch was queued since, the transaction is given up
    and all of it is done again.

    Args:
        context: The home.
        check: Refuses where something needs the model; called before the transaction and within it.
        remove: Removes it, within the transaction.

    Raises:
        ConflictError: `check` or `remove` refuses, or batches are queued faster than their rows are read.
    """
    with models_read_ahead():
        for _ in range(_MAX_ATTEMPTS):
            check()
            try:
                with context.database.transaction():
                    check()
                    return remove()
            except UnreadModelsError:
                continue
    raise ConflictError(
        "new batches were queued while the rows of others were read",
        expected="a moment without a new batch",
        do="try again in a minute",
    )


def models_of_training(_context: Context, job: Job) -> Iterator[NamedModel]:
    """The models that a training job names before its run has a plan: base, teacher and graders."""
    yield from models_in(job.document, (BASE_MODEL,))


def _waiting(context: Context) -> Iterator[Job]:
    """Jobs that have not ended and whose names of models still count."""
    for job in context.jobs.list(status=OPEN):
        # The plan of a run that has begun names the weights themselves, whatever its request says.
        if not (job.run_id and context.runs.some([job.run_id])):
            yield job


def _named_models(context: Context, job: Job) -> tuple[NamedModel, ...]:
    # By name: the kinds of jobs belong to features above this one.
    declared = models_of(job.kind, job.document)
    return tuple(dict.fromkeys(import_string(declared)(context, job))) if declared else ()


def _means(job: Job, asked: NamedModel, named: Sequence[Deployment], deployment: Deployment) -> bool:
    """Whether a job finds a deployment, and not another one of the same name."""
    if asked.look_up == "weights":
        return False
    if asked.look_up == "project":
        return job.project_id == deployment.project_id
    meant = nearest_deployment(named, (job.project_id, DEFAULT_PROJECT))
    return meant is not None and meant.deployment_id == deployment.deployment_id


def refuse_in_use(context: Context, caller: Caller, name: str) -> None:
    """Raise ConflictError where runs that have not ended need a model that is to be deleted.

    Args:
        context: The home.
        caller: Who wants to delete it: ids of other projects are not shown.
        name: As for `uses_of`.
    """
    refuse_used_by_commands(context, name)
    uses = uses_of(context, name)
    if not uses:
        return
    if all(is_id(use.run_id, "run") for use in uses):
        needed_by = counted(len(uses), "run that has not ended", "runs that have not ended") + _shown(uses, caller)
    else:
        needed_by = counted(len(uses), "job that has not ended", "jobs that have not ended") + _shown(uses, caller)
    raise ConflictError(
        f"{name} is needed by {needed_by}",
        expected="a model that no run or job needs: work is resumed with the weights that it began with",
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
        f"the deployment {deployment.name!r} is named as a model by {jobs}",
        expected="a deployment that no job names: the job looks it up when it begins or resumes",
        do="let the job end, or cancel it",
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
    is_there = path is not None and any(Path(place).resolve() == Path(path).resolve() for place in places)
    return is_there or any(name in Path(place).parts for place in places)


def _is_meant(context: Context, job: Job, asked: NamedModel, name: str, path: str | None) -> bool:
    # Names in rows of a batch are not checked when it is created: there, only what the project may ask counts.
    if asked.name == name and asked.look_up != "project":
        return True
    try:
        found = find_unheld(context, asked.name, Caller(project_id=job.project_id))
    except LuthierError:
        return False  # a name that means nothing keeps nothing
    return _is_of(context, found, name, path, is_path=asked.look_up != "project")


def _is_leased(context: Context, leased: LeasedModel, name: str, path: str | None) -> bool:
    found = ResolvedModel(leased.asked, leased.name, leased.run_id)
    return name == leased.model_id or _is_of(context, found, name, path, is_path=True)


def _is_of(context: Context, found: ResolvedModel, name: str, path: str | None, *, is_path: bool) -> bool:
    """Whether a model is the one of a name, was made by it, or is an adapter over it.

    Args:
        context: The home.
        found: What is needed.
        name: What is to be deleted: a run, a tuned model or a base model.
        path: The folder of a base model.
        is_path: Whether the name of what is needed may be a path.
    """
    if name in (found.run_id, found.name, found.asked):
        return True
    if found.run_id is not None:
        of_run = context.runs.some([found.run_id])
        return any(record.base_model == name for record in of_run.values())
    return is_path and _is_at(context, found.name, name, path)


def _is_at(context: Context, given: str, name: str, path: str | None) -> bool:
    """Whether a path, or another spelling of a base model, leads to what is to be deleted."""
    # Brings the catalogue, which most jobs do not need.
    from luthier.ml.inference.models import catalog

    try:
        asked = catalog.parse(given)
        if asked.source == "layers":  # made of the teacher's weights
            return asked.teacher == name or _is_at(context, asked.teacher, name, path)
        if asked.source == "folder" and is_adapter_folder(Path(asked.text)):
            _, base = base_of_adapter(context, Path(asked.text))
            return base is not None and (base.name == name or base.path == path)
        if asked.text == name:
            return True
    except LuthierError:
        return False
    # Resolved on both sides: a folder has several spellings, by links and relative to the current one.
    kept = [Path(path).resolve()] if path is not None else []
    if is_id(name, "run"):
        kept.append(context.settings.run_folder(name).resolve())
    return asked.file is not None and any(asked.file.is_relative_to(place) for place in kept)
