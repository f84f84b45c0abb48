"""The same recipe trained again with other seeds: each a run of its own, found again rather than trained twice."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from luthier.core.errors import ConflictError
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe, TrainingRecipe
from luthier.platform.home.context import Context


def runs_of_other_seeds(context: Context, run_id: str, num: int) -> list[str]:
    """The runs of the recipe of `run_id` with the next `num` seeds, in their order.

    Raises:
        ConflictError: One of them ends without trained weights, or base model, rows or teacher have changed since.
        DivergedError: The loss of one is no number.
        StorageFullError: The disk is full.
    """
    from luthier.features.planning.service import prepare, prepare_again
    from luthier.features.training.service import train_prepared

    plan = context.runs.plan(run_id)
    data, found = plan.recipe.data, []
    if data.split_seed is None and any(isinstance(share, float) for share in (data.validation, data.held_out)):
        # Else another seed would be another split, and learn rows that are held out here.
        data = data.model_copy(update={"split_seed": plan.training.seed})
    for seed in range(plan.training.seed + 1, plan.training.seed + 1 + num):
        training = (plan.recipe.training or TrainingRecipe()).model_copy(update={"seed": seed})
        recipe = plan.recipe.model_copy(update={"training": training, "data": data})
        wanted = _content(recipe, plan)
        done = (one.run_id for one in context.runs.list() if one.status == "succeeded")
        known = next((one for one in done if _content_of(context.runs.plan(one)) == wanted), None)
        if known is None:
            began = time.perf_counter()
            prepared = prepare(context, recipe, base_dir=Path())
            prepare_again(context, plan, ready=prepared)  # refuses other content at the same paths
            # Not judged here: the caller judges all seeds together.
            prepared = replace(prepared, held_out=None, replay_held_out=None)
            record = train_prepared(context, prepared, began=began).record
            if record.status != "succeeded" or record.result is None or record.result.adapter_path is None:
                raise ConflictError(
                    f"run {record.run_id} with seed {seed} is {record.status}",
                    expected="a run that ends with trained weights",
                    do=f"go on with it (luthier train --resume {record.run_id}), then judge again",
                )
            known = record.run_id
        found.append(known)
    return found


def _content_of(plan: Plan) -> tuple[Recipe, object]:
    return _content(plan.recipe, plan)


def _content(recipe: Recipe, plan: Plan) -> tuple[Recipe, object]:
    """What a recipe trains: with digests of the plan in place of names, since content at one place may change.

    Not the plan itself, which also holds what this machine can do: another day may change that.
    """
    from luthier.features.planning.service import profiles

    names = ("train", "validation", "held_out", "replay.file", "replay.held_out")
    digests = {name: one.sha256 for name, one in zip(names, profiles(plan.data), strict=True) if one is not None}
    named = recipe.data.files()
    data = recipe.data.with_files({name: digests.get(name, file) for name, file in named.items()})
    teacher = plan.objective.teacher
    return (
        recipe.model_copy(update={"data": data, "base_model": plan.base_model.sha256}),
        teacher and (teacher.sha256, teacher.adapter_sha256),
    )
