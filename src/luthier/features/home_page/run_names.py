"""Names of runs for the first page: those that people gave, else dataset, family of the base model and day."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath

from luthier.core.run import RunRecord
from luthier.core.text.names import display_name
from luthier.features.runs.state import asked_of
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job


def run_names(
    context: Context, project_id: str, records: Sequence[RunRecord], jobs: Sequence[Job] = ()
) -> dict[str, str]:
    """The names of runs by their ids.

    Args:
        context: The home.
        project_id: Whose datasets give the first part of a name.
        records: Runs that have begun.
        jobs: Jobs whose runs may not have begun.
    """
    found: dict[str, str] = {}
    plans = context.run_entries.plan_documents([one.run_id for one in records])
    trained = {run_id: json.loads(text)["data"]["train"] for run_id, text in plans.items()}
    waiting = {one.run_id: asked_of(one) for one in jobs if one.run_id and one.run_id not in plans}
    keys = {*(one["sha256"] for one in trained.values()), *(one["train"] for one in waiting.values() if "train" in one)}
    datasets = context.run_entries.dataset_names(project_id, [key for key in keys if key])
    for job in jobs:
        if job.run_id in waiting:
            asked = waiting[job.run_id]
            dataset = datasets.get(asked.get("train", ""))
            base_model = asked.get("base_model", "") or str(job.document.get("base_model", ""))
            moment = datetime.fromtimestamp(job.created_at, UTC)
            found[job.run_id] = display_name(dataset.name if dataset else "", base_model, moment)
    for record in records:
        file = trained.get(record.run_id)
        dataset = datasets.get(file["sha256"]) if file else None
        words = dataset.name if dataset else _words(file["file"]) if file else ""
        found[record.run_id] = display_name(words, record.base_model, datetime.fromisoformat(record.created_at))
    given = context.run_labels.of_runs(list(found))
    return {run_id: given[run_id].name or name for run_id, name in found.items()}


def _words(file: str) -> str:
    """A file as a name: `client_questions.jsonl` is `Client questions`."""
    words = " ".join(PurePath(file).stem.replace("_", " ").replace("-", " ").split())
    return words[:1].upper() + words[1:]
