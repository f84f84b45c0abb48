"""Who still needs a model: runs that have not ended, and jobs that wait, with their teacher, judges and base.

A run is resumed with the very weights that it began with, so these must not be deleted before it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, LuthierError
from luthier.core.plan import Plan
from luthier.core.text.counted import counted
from luthier.features.models.names import find_model
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import ENDED, OPEN

_MODELS: Final = ("teacher", "base_model")
_GRADERS: Final = ("score_model", "label_model")
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
    for job in context.jobs.list(status=OPEN):
        # The plan of a run that has begun names the weights themselves, whatever its request says.
        if job.run_id and (job.run_id == name or context.runs.some([job.run_id])):
            continue
        caller = Caller(project_id=job.project_id)
        if any(_is_meant(context, caller, asked, name) for asked in _models_in(job.document)):
            found.append(Use(job.run_id or job.job_id, job.project_id))
    return tuple(found)


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
    shown = [use.run_id for use in uses if use.project_id == caller.project_id][:_MAX_NAMED]
    names = f" ({', '.join(shown)})" if shown else ""
    runs = counted(len(uses), "run that has not ended", "runs that have not ended")
    raise ConflictError(
        f"{name} is the base, the teacher or the judge of {runs}{names}",
        expected="a model that no run needs: it is resumed with the weights that it began with",
        do="let it end, or cancel it; delete a run that was interrupted for good",
    )


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


def _models_in(document: Any) -> Iterator[str]:
    """The names of models in a request, at any depth: of recipes, of a fine-tuning job, of a study."""
    if isinstance(document, dict):
        for key, value in document.items():
            if isinstance(value, str) and (key in _MODELS or (key == "model" and document.get("type") in _GRADERS)):
                yield value
            else:
                yield from _models_in(value)
    elif isinstance(document, list):
        for one in document:
            yield from _models_in(one)


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
