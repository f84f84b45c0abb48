"""From what a training client asks for to a plan, as runs have it: decided by the rules of every other run.

The rows come from the client call by call, so the part about data is empty, and the number of steps is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from luthier.core.dataset import DatasetProfile
from luthier.core.ids import sha256_document
from luthier.core.plan import DataPlan, Plan
from luthier.core.recipe import DataRecipe, MethodRecipe, Recipe, TrainingRecipe
from luthier.features.tinker_api.records import ALPHA, AdapterOptions

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.planning.hardware import Hardware

SOURCE: Final = "tinker"
"""What the plan names in place of the file of the training rows."""


def adapter_plan(options: AdapterOptions, model: LocalModel, template: ChatTemplate, hardware: Hardware) -> Plan:
    """The plan of a training client.

    Args:
        options: of the client.
        model: the base.
        template: its chat template.
        hardware: decides the precision.

    Raises:
        RecipeError: the rank is above that of a matrix, or the model has no matrices of a kind.
    """
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.resolve import resolve

    structure = read_structure(model.path)
    targets = ["attention"] * options.train_attn + ["mlp"] * options.train_mlp
    if options.train_unembed:
        targets.append(structure.outer_layers[-1].kind)  # the head comes last, behind the embeddings
    recipe = Recipe(
        base_model=model.name,
        data=DataRecipe(train=SOURCE),
        method=MethodRecipe(name="lora", rank=options.rank, alpha=ALPHA, dropout=0.0, targets=tuple(targets)),
        training=TrainingRecipe(max_steps=1, seed=options.seed, schedule="constant", weight_decay=0.0),
    )
    profile = DatasetProfile(
        split="train",
        file=SOURCE,
        sha256=sha256_document({}),
        shape="text",
        shape_reason="given by a client of the Tinker API",
        num_rows=1,
        num_examples=1,
        num_dropped=0,
        num_tokens=1,
        num_trained_tokens=1,
        max_tokens=2,
        mean_tokens=2.0,
    )
    given: dict[str, Any] = {"template": template.kind, "template_sha256": template.sha256}
    return resolve(recipe, model=model, data=DataPlan(train=profile), structure=structure, hardware=hardware, **given)
