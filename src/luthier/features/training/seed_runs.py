"""The same recipe trained again with other seeds: each a run of its own, found again rather than trained twice."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from luthier.core.errors import ConflictError
from luthier.core.recipe import TrainingRecipe
from luthier.platform.home.context import Context


def runs_of_other_seeds(context: Context, run_id: str, num: int) -> list[str]:
    """The runs of the recipe of `run_id` with the next `num` seeds, in their order.

    Raises:
        ConflictError: One of them ends without trained weights.
        DivergedError: The loss of one is no number.
        StorageFullError: The disk is full.
    """
    from luthier.features.planning.service import prepare
    from luthier.features.training.service import train_prepared

    plan = context.runs.plan(run_id)
    found = []
    for seed in range(plan.training.seed + 1, plan.training.seed + 1 + num):
        training = (plan.recipe.training or TrainingRecipe()).model_copy(update={"seed": seed})
        recipe = plan.recipe.model_copy(update={"training": training})
        # by the recipe: a plan also holds what this machine can do, which another day may change
        known = next(
            (
                one.run_id
                for one in context.runs.list()
                if one.status == "succeeded" and context.runs.plan(one.run_id).recipe == recipe
            ),
            None,
        )
        if known is None:
            began = time.perf_counter()
            # Not judged here: the caller judges all seeds together.
            prepared = replace(prepare(context, recipe, base_dir=Path()), held_out=None, replay_held_out=None)
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
