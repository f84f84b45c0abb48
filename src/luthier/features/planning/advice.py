"""Use case: which method a prepared recipe should take on this machine or another device."""

from __future__ import annotations

from luthier.core.cost import PriceTable
from luthier.core.records.advice import Advice
from luthier.features.planning.quotes import compare_options, device_for
from luthier.features.planning.service import Prepared
from luthier.platform.home.context import Context


def advise(context: Context, prepared: Prepared, *, on: str | None = None, prices: PriceTable | None = None) -> Advice:
    """The method to take for these rows on a device (None: this machine), within the recipe's budget.

    Raises RequestError for an unknown device.
    """
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning import advise as rules
    from luthier.ml.planning.adapter import place_adapters, targeted
    from luthier.ml.planning.fit_suggestions import name_of
    from luthier.ml.planning.workload import work_method
    from luthier.ml.training.methods.rules import LORA_RANK

    plan, recipe = prepared.plan, prepared.plan.recipe
    structure = read_structure(prepared.model.path)
    asked = recipe.method.targets if recipe.method and recipe.method.targets else "all-linear"
    place = place_adapters(structure, asked, rank=LORA_RANK[0])
    # Experts count only where nothing else is adapted: their rank is a share of the others'.
    layers = targeted(structure, place.targets) or targeted(structure, (), place.expert_targets)
    name = on or name_of(device_for(context, None))
    return rules.advise(
        compare_options(context, prepared, on=[name], prices=prices),
        rules.DataFacts(
            num_examples=plan.data.train.num_examples,
            num_learned_tokens=plan.data.train.num_trained_tokens,
            num_steps=plan.training.num_steps,
            parameters_per_rank=sum(layer.num_inputs + layer.num_outputs for layer in layers),
            largest_rank=min(layer.full_rank for layer in layers),
            asked_rank=(recipe.method.rank or recipe.method.target_rank) if recipe.method else None,
            asked_method=work_method(recipe.method.name) if recipe.method else None,
        ),
        recipe.budget,
    )
