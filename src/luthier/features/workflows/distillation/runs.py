"""The two trainings of a distillation, with the teacher and without: begun, gone on with, or found done."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.ids import new_id
from luthier.core.recipe import Recipe
from luthier.core.workflows.student import StudentRun
from luthier.platform.home.context import Context

_STATE: Final = "state.json"


def train_side(context: Context, folder: Path, side: str, recipe: Recipe) -> StudentRun | None:
    """Train one of the two, or go on with it; None where it was stopped midway. Its run id is kept before it begins.

    A run of this home that has done the very same is taken as it is: the student without a teacher of another kind.
    """
    from luthier.features.training.service import resume, train
    from luthier.ml.charts.page import replace_text

    state = read_state(folder)
    if side not in state:
        state |= {side: _same_run(context, folder, recipe) or new_id("run")}
        replace_text(folder / _STATE, json.dumps(state, indent=1) + "\n")
    run_id = state[side]
    try:
        record = context.runs.get(run_id)
    except NotFoundError:
        record = train(context, recipe, base_dir=folder, run_id=run_id).record
    else:
        if record.status != "succeeded":
            record = resume(context, run_id).record
    result = record.result
    if record.status != "succeeded" or result is None:
        return None
    return StudentRun(
        run_id=run_id,
        method=record.method,
        num_steps=result.num_steps,
        num_examples=result.num_examples,
        num_tokens=result.num_tokens,
        num_trained_tokens=result.num_trained_tokens,
        weights_sha256=str(result.adapter_sha256),
        seconds=result.seconds,
    )


def _same_run(context: Context, folder: Path, recipe: Recipe) -> str | None:
    """A run that has ended well and whose plan decides the same outcome; its weights must be there, unchanged."""
    from luthier.features.evaluations.export_sources import find_source
    from luthier.features.planning.service import make_plan

    wanted = make_plan(context, recipe, base_dir=folder).hash
    for record in context.runs.list():
        if record.plan_hash == wanted and record.status == "succeeded":
            with suppress(ConflictError, NotFoundError):
                return find_source(context, record.run_id).run_id
    return None


def read_state(folder: Path) -> dict[str, str]:
    """The ids of the runs that were begun, by side. Raises ConflictError for a damaged file."""
    file = folder / _STATE
    if not file.is_file():
        return {}
    state = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ConflictError(f"{file} is damaged", expected="ids of two runs", do=f"delete {folder} and start again")
    return state
