"""What a plan says of the rows: the splits as they were read, and which rows stand in two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.dataset import Split
from luthier.core.errors import LeakageError
from luthier.core.plan import DataPlan
from luthier.core.recipe import Recipe
from luthier.features.planning.memorisation_probes import canaries_plan
from luthier.features.planning.replay import replay_plan

if TYPE_CHECKING:
    from luthier.features.planning.training_data import PreparedSplit


def data_plan(recipe: Recipe, splits: dict[Split, PreparedSplit], template_day: str | None = None) -> DataPlan:
    """The data part of the plan. template_day: that the rows were written on, of a template that writes the date.

    Raises LeakageError for held-out rows in the training rows, unless that is allowed."""
    from luthier.ml.data.split.split import leaked_ids

    train, validation, held_out = splits["train"], splits.get("validation"), splits.get("held_out")
    # Replayed rows are trained on, too, so held-out rows must not be among them either.
    seen = [*train.examples, *(splits["replay"].examples if "replay" in splits else ())]
    num_leaked = num_same_prompt = num_validation_leaked = 0
    if held_out is not None:
        leakage = leaked_ids(seen, held_out.examples)
        if leakage.exact and not recipe.data.allow_leakage:
            raise LeakageError(
                f"{len(leakage.exact):,} of {len(held_out.examples):,} held-out rows also stand in the training rows",
                expected="no held-out row that the model is trained on: it would be judged on what it has seen",
                do="take them out of one of the two files, or set data.allow_leakage: true (the verdict will say so)",
                problems=leakage.exact,
            )
        num_leaked, num_same_prompt = len(leakage.exact), len(leakage.same_prompt)
    if validation is not None:
        num_validation_leaked = len(leaked_ids(seen, validation.examples).exact)
    return DataPlan(
        train=train.profile,
        validation=validation.profile if validation else None,
        held_out=held_out.profile if held_out else None,
        num_leaked=num_leaked,
        num_same_prompt=num_same_prompt,
        num_validation_leaked=num_validation_leaked,
        part=recipe.data.part,
        replay=replay_plan(recipe, splits),
        canaries=canaries_plan(recipe),
        template_options=recipe.data.template_options or {},
        template_day=template_day,
        learn_reasoning=recipe.data.learn_reasoning,
        reset_template=recipe.data.reset_template,
        reasoning=recipe.data.reasoning,
        system=recipe.data.system,
        tools=recipe.data.tools,
    )
