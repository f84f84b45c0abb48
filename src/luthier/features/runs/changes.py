"""Changes of runs by people: what is written about them, and their deletion. All are logged."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, LuthierError, RequestError
from luthier.core.ports import track
from luthier.core.run import RunRecord
from luthier.features.models.uses import remove_unused, uses_of
from luthier.features.runs.labels import LabelChanges, RunLabels
from luthier.features.runs.service import set_aside, sweep_removed
from luthier.features.runs.state import job_of, standing
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context


def edit_run(context: Context, caller: Caller, run_id: str, changes: LabelChanges) -> RunLabels:
    """Change what is written about a run of the project, one that waits in the queue included.

    Raises:
        NotFoundError: The project has no such run.
        RequestError: A text is too long, or a tag is none.
    """
    job_of(context, caller, run_id)
    with context.database.transaction():
        old = context.run_labels.of_runs([run_id])[run_id]
        new = changes.applied(old)
        if new != old:
            context.run_labels.put(run_id, new)
            before, after = old.as_json(), new.as_json()
            # A note may be long and is free text: the log says that it changed.
            changed = [name for name in after if after[name] != before[name]]
            document = {name: "changed" if name == "note" else after[name] for name in changed}
            record(context, caller, "run.edited", run_id, document)
    return new


def edit_here(context: Context, run_id: str, changes: LabelChanges) -> RunLabels:
    """The same by a person at this machine, for a run of any project."""
    project_id = context.runs.project_of(run_id) or DEFAULT_PROJECT
    return edit_run(context, Caller(project_id=project_id), run_id, changes)


def edit_runs(context: Context, caller: Caller, run_ids: Sequence[str], changes: LabelChanges) -> int:
    """Change what is written about several runs, all or none; returns how many.

    Raises:
        NotFoundError: The project has no such run.
        RequestError: No run is chosen, a text is too long, or a tag is none.
    """
    _check_chosen(run_ids)
    with context.database.transaction():
        for run_id in run_ids:
            edit_run(context, caller, run_id, changes)
    return len(run_ids)


def delete_run(context: Context, caller: Caller, run_id: str, *, with_models: bool = False) -> RunRecord:
    """Delete a run of the project; its files are gone after the next `sweep`.

    Args:
        context: The home.
        caller: Whose run it is.
        run_id: The run.
        with_models: Whether the models that were registered of it are deleted, too.

    Raises:
        NotFoundError: The project has no such run.
        ConflictError: Its job waits, works or is paused, a deployment routes to it or to a model of it, or a model of
            it is registered and is not to be deleted.
    """
    found = standing(context, caller, run_id)
    if not found.is_over and found.status != "interrupted":
        raise ConflictError(
            f"run {run_id} is {found.status}", expected="a run that has ended", do="cancel it first, then delete it"
        )
    if found.record is None:
        raise ConflictError(
            f"run {run_id} has never started", expected="a run with a plan", do="archive it: the list then hides it"
        )
    # The check alone: which of the refusals of `set_aside` comes first is its own.
    return remove_unused(
        context,
        lambda: uses_of(context, run_id),
        lambda: set_aside(context, caller, run_id, with_models=with_models),
    )


def delete_runs(
    context: Context, caller: Caller, run_ids: Sequence[str], *, with_models: bool = False
) -> tuple[int, list[LuthierError]]:
    """Delete several runs of the project: all that can be.

    Args:
        context: The home.
        caller: Whose runs they are.
        run_ids: The runs.
        with_models: Whether the models that were registered of them are deleted, too.

    Returns:
        How many were deleted, and for each of the others why not.

    Raises:
        RequestError: No run is chosen.
    """
    _check_chosen(run_ids)
    refused = list[LuthierError]()
    for run_id in track(context.progress, "Deleting runs", run_ids, "runs"):
        try:
            delete_run(context, caller, run_id, with_models=with_models)
        except LuthierError as error:
            refused.append(error)
    return len(run_ids) - len(refused), refused


def _check_chosen(run_ids: Sequence[str]) -> None:
    if not run_ids:
        raise RequestError("no run is chosen", expected="one run or more", do="tick the runs, then choose what to do")


def sweep(context: Context) -> None:
    """Finish removals that have begun."""
    sweep_removed(context)
