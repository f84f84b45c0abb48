"""Use case: queue a recipe of a project, whose files are named by id; a worker looks at its rows, then trains it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.ids import new_id
from luthier.features.files.references import FileReferences, with_files
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

ASKED: Final = "asked"
"""Where the document of such a job holds the recipe, as it was asked for."""


def start(context: Context, caller: Caller, recipe: Mapping[str, Any]) -> Job:
    """Queue a recipe; `run_id` of the job is the run that it makes, which has a record once it trains.

    What can be told without reading rows is told here: keys and values, files and models that are not there. Rows are
    read before it waits for its turn to train: what is wrong with them ends the job. `files.references.plan_of` tells
    that before anything is queued.

    Raises RequestError, and RecipeError with all wrong places.
    """
    asked, base_model = checked(context, caller.project_id, recipe)
    job = context.jobs.submit(
        Job(
            job_id=new_id("job"),
            kind="train",
            document={ASKED: asked, "base_model": base_model},
            run_id=new_id("run"),
            project_id=caller.project_id,
            lane="validate",
        )
    )
    facts = {"run_id": job.run_id, "base_model": asked["base_model"], "train": asked["data"]["train"]}
    record(context, caller, "job.created", job.job_id, facts)
    return job


def checked(context: Context, project_id: str, recipe: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The recipe as plain JSON without what it leaves open, and the name of its base model on this machine.

    Raises RequestError for files and models that are not there, RecipeError for keys and values.
    """
    from luthier.features.recipes.service import recipe_from

    names = FileReferences(context, project_id)
    document = with_files(recipe, file=lambda place, value: names.stored(place, value).file_id, model=names.model)
    complete = recipe_from(document, base_dir=Path())
    # A round trip makes a deep copy of plain JSON types; the job must not change with the caller's mapping.
    asked: dict[str, Any] = json.loads(json.dumps(recipe))
    return _without_nothing(asked), complete.base_model


def _without_nothing(document: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nothing(value) if isinstance(value, dict) else value
        for name, value in document.items()
        if value is not None
    }
