"""The loss of the routers of a mixture of experts: on or off, by which coefficient, and what it then trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luthier.core.errors import RecipeError
from luthier.core.plan import MethodPlan, ObjectivePlan
from luthier.core.recipe import ObjectiveRecipe, RouterAuxLoss
from luthier.ml.planning.provenance import Provenance

if TYPE_CHECKING:
    from luthier.ml.inference.models.structure import Structure

NAME: Final = "objective.router_aux_loss"
_OFF: Final = "remove objective.router_aux_loss, or set it to off"


def with_router_loss(
    objective: ObjectivePlan,
    recipe: ObjectiveRecipe | None,
    method: MethodPlan,
    structure: Structure,
    model_path: str,
    sources: Provenance,
) -> ObjectivePlan:
    """The objective with the coefficient of the loss of the routers, where it is requested.

    A model with experts has it said in the plan either way; of one without, nothing is said.

    Raises:
        RecipeError: it is requested and the model has no experts, its config names no coefficient, or the method puts
            a prompt of its own before each row.
    """
    asked = recipe.router_aux_loss if recipe is not None else None
    if asked in (None, "off"):
        if structure.num_experts:
            why = "off, as in transformers where nobody asks for it; routers choose as the base taught them"
            sources.note(NAME, "asked" if asked else "default", why)
        return objective
    if not structure.num_experts:
        raise RecipeError(
            f"{NAME}: {asked} with a model that has no experts",
            expected="a mixture of experts, whose routers share tokens out",
            do=_OFF,
        )
    if method.num_virtual_tokens:
        raise RecipeError(
            f"{NAME}: {asked} with method {method.name}, whose trained prompt is routed, too",
            expected="a method that puts nothing before the rows",
            do=f"{_OFF}; or choose method.name: lora",
        )
    coefficient = _coefficient(asked, model_path)
    from_config = "router_aux_loss_coef of the model's config; " if asked == "model" else ""
    sources.note(NAME, "asked", f"{from_config}{_what_trains(method, structure)}; the mean over micro-batches")
    return objective.model_copy(update={"router_aux_loss": coefficient})


def _coefficient(asked: RouterAuxLoss | None, model_path: str) -> float:
    if isinstance(asked, float | int):
        return float(asked)
    from luthier.ml.inference.models.architecture import load_config, text_config

    # transformers' name of the coefficient, the same for Mixtral, Qwen and others.
    found = getattr(text_config(load_config(model_path)), "router_aux_loss_coef", None)
    # 0 in a config is no coefficient to take over.
    if isinstance(found, float | int) and not isinstance(found, bool) and found > 0:
        return float(found)
    raise RecipeError(
        f"{NAME}: model, and the config of the base has router_aux_loss_coef {found}",
        expected="a number above 0 there, or one in the recipe",
        do=f"set {NAME}: 0.001, or another coefficient; or off",
    )


def _what_trains(method: MethodPlan, structure: Structure) -> str:
    """Whether the routers train, which is what such a loss is usually for."""
    if method.name == "full":
        return "the routers train, and so does all before them"
    named = [x for x in structure.linear_layers if x.role == "router" and {x.name, x.kind} & set(method.targets)]
    if named:
        return f"{len(named)} routers carry an adapter and train"
    return "the routers are frozen, so it only shapes the adapters on what they read"
