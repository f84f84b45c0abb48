"""Names of runs for the first page: those that people gave, else dataset, family of the base model and day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from luthier.core.run import RunRecord
from luthier.core.text.names import display_name
from luthier.features.runs.labels import asked_of
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job


def run_names(
    context: Context,
    project_id: str,
    records: Sequence[RunRecord],
    jobs: Sequence[Job] = (),
    *,
    more: Sequence[str] = (),
) -> dict[str, str]:
    """The names of runs by their ids.

    Args:
        context: The home.
        project_id: Whose datasets give the first part of a name.
        records: Runs that have begun.
        jobs: Jobs whose runs may not have begun.
        more: Ids of further runs that have begun.
    """
    run_ids = [*more, *(one.run_id for one in records), *(one.run_id for one in jobs if one.run_id)]
    found = context.run_labels.names(run_ids)
    # A job whose run has not begun has no name yet but its id: it is called as its run will be.
    waiting = {one.run_id: asked_of(one) for one in jobs if one.run_id and found[one.run_id] == one.run_id}
    keys = {one["train"] for one in waiting.values() if one.get("train")}
    datasets = context.run_entries.dataset_names(project_id, list(keys))
    for job in jobs:
        if job.run_id in waiting:
            asked = waiting[job.run_id]
            dataset = datasets.get(asked.get("train", ""))
            base_model = asked.get("base_model", "") or str(job.document.get("base_model", ""))
            moment = datetime.fromtimestamp(job.created_at, UTC)
            found[job.run_id] = display_name(dataset.name if dataset else "", base_model, moment)
    return found
