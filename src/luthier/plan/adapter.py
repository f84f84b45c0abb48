"""Which matrices an adapter is put on, and how many parameters that makes."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.errors import RecipeError
from luthier.models.structure import LinearLayer, Structure


def resolve_targets(structure: Structure, asked: str | Sequence[str]) -> tuple[str, ...]:
    """Module names for the adapter, sorted. `all-linear`: every linear layer but the output head.

    Otherwise a name or names, matched against the last parts of module names as PEFT matches them. Raises RecipeError
    with the names there are when one matches nothing.
    """
    kinds = sorted({layer.kind for layer in structure.linear_layers})
    if asked == "all-linear":
        return tuple(kinds)
    wanted = (asked,) if isinstance(asked, str) else tuple(asked)
    missing = [w for w in wanted if not any(_matches(layer, w) for layer in structure.linear_layers)]
    if missing or not wanted:
        raise RecipeError(
            f"method.targets: {', '.join(missing) or 'an empty list'} matches no linear layer of this model",
            expected=f"all-linear, or some of {', '.join(kinds)}",
            do="correct method.targets in the recipe",
        )
    return tuple(sorted(set(wanted)))


def num_lora_parameters(structure: Structure, targets: Sequence[str], rank: int) -> int:
    """rank x (inputs + outputs) over the chosen matrices. Raises RecipeError for a rank above that of a matrix."""
    chosen = [layer for layer in structure.linear_layers if any(_matches(layer, t) for t in targets)]
    smallest = min(chosen, key=lambda layer: min(layer.num_inputs, layer.num_outputs))
    full_rank = min(smallest.num_inputs, smallest.num_outputs)
    if rank > full_rank:
        raise RecipeError(
            f"method.rank is {rank}, but {smallest.name} is {smallest.num_outputs} x {smallest.num_inputs}",
            expected=f"a rank of at most {full_rank}",
            do="lower method.rank, or leave that matrix out of method.targets",
        )
    return sum(rank * (layer.num_inputs + layer.num_outputs) for layer in chosen)


def _matches(layer: LinearLayer, target: str) -> bool:
    return layer.name == target or layer.name.endswith(f".{target}")
