"""Which matrices an adapter is put on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from luthier.core.bounded_regex import BoundedPattern
from luthier.core.errors import RecipeError, RequestError
from luthier.core.recipe import LayersRecipe
from luthier.models.structure import LinearLayer, Structure
from luthier.store.nearest import nearest_ids

GROUPS: Final = ("all-linear", "attention", "mlp")
_WITH_ADAPTED_HEAD: Final = ("sft", "pretraining", "distillation", "dpo", "ipo", "orpo", "kto", "simpo")
"""Objectives whose loss takes the head as the method gives it (`TrainableModel.logit_parts`)."""
_PATTERN: Final = "re:"
_ATTENTION: Final = re.compile(r"attn|attention", re.IGNORECASE)


def resolve_targets(
    structure: Structure, asked: str | Sequence[str], layers: LayersRecipe | None = None
) -> tuple[str, ...]:
    """Module names for the adapter, sorted: last parts (`q_proj`) where every layer is meant, else whole names.

    asked: one or several of `all-linear` (every linear layer but the output head), `attention`, `mlp`, a name, matched
    against the last parts of module names as PEFT matches them, or `re:` and a pattern that matches whole names.
    Embeddings and head are meant by name or pattern only. layers: only the first and last so many blocks, beside
    embeddings and head. Raises RecipeError, naming what is nearest, where an entry matches
    nothing or there are not so many blocks.
    """
    wanted = (asked,) if isinstance(asked, str) else tuple(asked)
    if not wanted:
        raise _matches_nothing("an empty list", structure)
    chosen: set[str] = set()
    for entry in wanted:
        among = structure.linear_layers if entry in GROUPS else structure.adaptable
        found = {layer.name for layer in among if _is_meant(layer, entry)}
        if not found:
            raise _matches_nothing(repr(entry), structure, entry)
        chosen |= found
    outer = {layer.name for layer in structure.outer_layers}
    within = [
        x
        for x in structure.adaptable
        if x.name in chosen and (x.name in outer or _is_within(x, layers, structure.num_layers))
    ]
    if not within:
        raise _matches_nothing(f"{', '.join(wanted)} within method.layers", structure)
    return _shortened(within, structure)


def targeted(structure: Structure, targets: Sequence[str]) -> tuple[LinearLayer, ...]:
    """The matrices that resolved targets stand for, in the order of the model."""
    return tuple(layer for layer in structure.adaptable if any(_matches(layer, t) for t in targets))


def outer_targets(structure: Structure, targets: Sequence[str]) -> tuple[LinearLayer, ...]:
    """The table of embeddings and the head, as far as they are among resolved targets."""
    return tuple(layer for layer in structure.outer_layers if any(_matches(layer, t) for t in targets))


def num_lora_parameters(structure: Structure, targets: Sequence[str], rank: int) -> int:
    """rank x (inputs + outputs) over the matrices of resolved targets. Raises RecipeError as `refuse_rank`."""
    layers = targeted(structure, targets)
    refuse_rank(layers, rank, "rank")
    return sum(rank * (layer.num_inputs + layer.num_outputs) for layer in layers)


def refuse_rank(layers: Sequence[LinearLayer], rank: int, setting: str) -> None:
    """Raise RecipeError where a rank is above that of the smallest of the matrices; `setting` names it."""
    smallest = min(layers, key=lambda layer: layer.full_rank)
    if rank > smallest.full_rank:
        raise RecipeError(
            f"method.{setting} is {rank}, but {smallest.name} is {smallest.num_outputs} x {smallest.num_inputs}",
            expected=f"a rank of at most {smallest.full_rank}",
            do=f"lower method.{setting}, or leave that matrix out of method.targets",
        )


def refuse_adapted_head(structure: Structure, targets: Sequence[str], objective: str) -> None:
    """Raise RecipeError where the head carries an adapter that the loss of the objective would not see."""
    head = structure.outer_layers[-1:]
    if objective not in _WITH_ADAPTED_HEAD and any(_matches(layer, t) for layer in head for t in targets):
        raise RecipeError(
            f"objective {objective} with an adapter on {head[0].name}",
            expected=f"{', '.join(_WITH_ADAPTED_HEAD)}: other losses are computed from the head of the base",
            do=f"leave {head[0].name} out of method.targets",
        )


def _is_meant(layer: LinearLayer, entry: str) -> bool:
    if entry == "all-linear":
        return True
    if entry in ("attention", "mlp"):
        in_attention = _ATTENTION.search(layer.name.rpartition(".")[0]) is not None
        return layer.layer is not None and in_attention == (entry == "attention")
    if entry.startswith(_PATTERN):
        return _pattern(entry).fullmatch(layer.name)
    return _matches(layer, entry)


@lru_cache(maxsize=64)
def _pattern(entry: str) -> BoundedPattern:
    try:
        return BoundedPattern("method.targets", entry.removeprefix(_PATTERN))
    except RequestError as error:
        raise RecipeError(
            f"method.targets: {entry[:100]!r} is no pattern: {error.came.rpartition(': ')[2]}",
            expected=f"`{_PATTERN}` and a regular expression of Python that matches whole module names",
            do="correct the pattern, for example re:.*\\.(q|v)_proj",
        ) from error


def _is_within(layer: LinearLayer, layers: LayersRecipe | None, num_layers: int) -> bool:
    if layers is None:
        return True
    for end, count in (("first", layers.first), ("last", layers.last)):
        if count is not None and count > num_layers:
            raise RecipeError(
                f"method.layers.{end} is {count}, but the model has {num_layers} layers",
                expected=f"at most {num_layers}",
                do=f"lower method.layers.{end}",
            )
    if layer.layer is None:
        return False
    return layer.layer < (layers.first or 0) or layer.layer >= num_layers - (layers.last or 0)


def _shortened(chosen: Sequence[LinearLayer], structure: Structure) -> tuple[str, ...]:
    """A kind by its one name where all of it is chosen, else each matrix by its whole name."""
    names = {layer.name for layer in chosen}
    kinds = {layer.kind for layer in chosen}
    whole = {k for k in kinds if all(x.name in names for x in structure.adaptable if _matches(x, k))}
    return tuple(sorted(whole | {layer.name for layer in chosen if layer.kind not in whole}))


def _matches(layer: LinearLayer, target: str) -> bool:
    return layer.name == target or layer.name.endswith(f".{target}")


def _matches_nothing(what: str, structure: Structure, entry: str = "") -> RecipeError:
    kinds = [*sorted({layer.kind for layer in structure.linear_layers}), *(x.kind for x in structure.outer_layers)]
    near = f"; {nearest_ids(entry, [*kinds, *GROUPS])}" if entry and not entry.startswith(_PATTERN) else ""
    return RecipeError(
        f"method.targets: {what} matches no linear layer of this model{near}",
        expected=f"{', '.join(GROUPS)}, `{_PATTERN}PATTERN`, or some of {', '.join(kinds)}",
        do="correct method.targets in the recipe",
    )
