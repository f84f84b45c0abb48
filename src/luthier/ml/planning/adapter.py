"""Which matrices an adapter is put on, how much of the model that reaches, and what is trained in whole beside it.

Groups (`all-linear`, `attention`, `mlp`, `experts`) mean what a matrix is, not what it is called. What they leave out
is reported: routers, matrices narrower than the rank, matrices that a kernel reads past their module, towers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from luthier.core.errors import RecipeError, RequestError
from luthier.core.recipe import LayersRecipe
from luthier.core.registry import OBJECTIVES
from luthier.core.text.suggest import suggest_ids
from luthier.ml.inference.models.structure import LinearLayer, Role, Structure
from luthier.ml.training.objectives.rules import rules_of

if TYPE_CHECKING:
    from luthier.core.plan import ObjectivePlan
    from luthier.core.system.bounded_regex import BoundedPattern

GROUPS: Final = ("all-linear", "attention", "mlp", "experts")
_LEFT_OUT: Final[dict[Role, str]] = {
    "router": "routers of experts",
    "kernel": "matrices that other code reads past their module, where an adapter would be ignored",
    "custom": "matrices of layers that compute more than a product with them, which no adapter could be added to",
    "outside": "matrices outside the language model, which text does not go through",
}
_PATTERN: Final = "re:"
_ATTENTION: Final = re.compile(r"attn|attention", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an adapter goes.

    Names are last parts where every layer is covered, else whole ones.

    Attributes:
        targets: names of modules.
        expert_targets: names of tensors that hold experts.
        left_out: what a group does not mean, as text, with the number of matrices.
        experts_by_group: whether experts are there because a group such as `all-linear` means them, and not by name.
    """

    targets: tuple[str, ...]
    expert_targets: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    experts_by_group: bool = False


@dataclass(frozen=True, slots=True)
class Reach:
    """Which share of the matrices of a language model carries an adapter: of all parameters, and of those one token
    meets.

    Attributes:
        num: matrices that do, each expert's counted by itself, of `num_all`.
    """

    share: float
    active_share: float
    num: int
    num_all: int


def place_adapters(
    structure: Structure,
    asked: str | Sequence[str],
    layers: LayersRecipe | None = None,
    *,
    rank: int = 0,
    experts: bool = True,
) -> Placement:
    """Where an adapter goes.

    Args:
        structure: of the model.
        asked: one or several of the groups, a name, matched against the last parts of module and tensor names as PEFT
            matches them, or `re:` and a pattern that matches whole names. Embeddings and head are selected by name or
            pattern only.
        layers: only the first and last that many blocks, in addition to embeddings and head.
        rank: groups leave out matrices that are narrower, but never queries, keys, values or an MLP.
        experts: whether groups mean the tensors that hold experts, too.

    Raises:
        RecipeError: an entry matches nothing (what is nearest is named), or a matrix that no adapter may be put on;
            there are not that many blocks.
    """
    wanted = (asked,) if isinstance(asked, str) else tuple(asked)
    # An empty list would place nothing, and train nothing in silence.
    if not wanted:
        raise _matches_nothing("an empty list", structure)
    grouped: set[str] = set()
    named: set[str] = set()
    left_out: Counter[str] = Counter()
    for entry in wanted:
        found = _group(structure, entry, experts, left_out) if entry in GROUPS else _named(structure, entry)
        if not found:
            raise _matches_nothing(repr(entry), structure, entry)
        # `experts` is a group, but a user who writes it names experts explicitly.
        (grouped if entry in GROUPS and entry != "experts" else named).update(found)
    # Embeddings and head belong to no block, so `layers` does not rule them.
    outer = {layer.name for layer in structure.outer_layers}
    everything = (*structure.adaptable, *structure.experts)
    within = [
        x
        for x in everything
        if x.name in grouped | named and (x.name in outer or _is_within(x, layers, structure.num_layers))
    ]
    if not within:
        raise _matches_nothing(f"{', '.join(wanted)} within method.layers", structure)
    # Who names a narrow matrix gets it, or the refusal of a rank that it has no room for.
    narrow = [x for x in within if x.name not in named and _is_narrow(x, rank, structure)]
    # Where no matrix has room for the rank, the widest stays, so that the rank is refused and not the targets.
    kept = [x for x in within if x not in narrow] or [max(within, key=lambda x: x.full_rank)]
    routed = [x for x in kept if x.role == "expert"]
    return Placement(
        _shortened([x for x in kept if x.role != "expert"], structure),
        _shortened_experts(routed, structure),
        {**left_out, **_count_narrow([x for x in narrow if x not in kept], rank, structure)},
        bool(routed) and not any(x.name in named for x in routed),
    )


def resolve_targets(
    structure: Structure, asked: str | Sequence[str], layers: LayersRecipe | None = None, *, rank: int = 0
) -> tuple[str, ...]:
    """The names of the modules of `place_adapters`, sorted; experts in one tensor are not among them.

    Args:
        structure: of the model.
        asked: a name of a group of matrices, or names.
        layers: which layers get adapters; None for all.
        rank: of the adapters.
    """
    return place_adapters(structure, asked, layers, rank=rank, experts=False).targets


def expert_rank(structure: Structure, rank: int) -> int:
    """The rank divided by the experts that a token meets, at least 1: as much for each token as in a dense model."""
    return max(1, rank // max(1, structure.num_active_experts))


def targeted(
    structure: Structure, targets: Sequence[str], expert_targets: Sequence[str] = ()
) -> tuple[LinearLayer, ...]:
    """The matrices that resolved targets represent, in the order of the model: modules, then tensors of experts.

    Args:
        structure: of the model.
        targets: names of modules, whole or last parts.
        expert_targets: names of tensors of experts.
    """
    modules = tuple(layer for layer in structure.adaptable if any(_matches(layer, t) for t in targets))
    return modules + tuple(layer for layer in structure.experts if any(_matches(layer, t) for t in expert_targets))


def reach(structure: Structure, targets: Sequence[str], expert_targets: Sequence[str] = ()) -> Reach:
    """How much of the language model resolved targets reach; embeddings and head count on neither side."""
    every = (*structure.linear_layers, *structure.experts)
    # Not the outer matrices, which `targeted` holds as well.
    reached = [layer for layer in targeted(structure, targets, expert_targets) if layer in every]
    return Reach(
        share=sum(x.num_parameters for x in reached) / max(1, structure.num_matrix_parameters),
        active_share=sum(structure.active_of(x) for x in reached) / max(1, structure.num_active_parameters),
        num=sum(x.num_matrices for x in reached),
        num_all=sum(x.num_matrices for x in every),
    )


def outer_targets(structure: Structure, targets: Sequence[str]) -> tuple[LinearLayer, ...]:
    """The table of embeddings and the head, if resolved names of targets or of modules to save mean them."""
    return tuple(layer for layer in structure.outer_layers if any(_matches(layer, t) for t in targets))


def resolve_modules_to_save(
    structure: Structure, asked: str | Sequence[str] | None, targets: Sequence[str]
) -> tuple[str, ...]:
    """The names of the modules that are trained in whole beside an adapter, in the order of the model.

    Args:
        structure: of the model.
        asked: the embedding table and the head, by whole names or last parts of them. Where both share one
            matrix, either name means both.
        targets: resolved targets of the adapter.

    Raises:
        RecipeError: another module, or one that carries an adapter.
    """
    wanted = (asked,) if isinstance(asked, str) else tuple(asked or ())
    outer = structure.outer_layers
    for entry in wanted:
        if not any(_matches(layer, entry) for layer in outer):
            kinds = [layer.kind for layer in outer]
            raise RecipeError(
                f"method.modules_to_save: {entry!r} is neither embeddings nor output head of this model; "
                f"{suggest_ids(entry, kinds)}",
                expected=f"some of {', '.join(kinds)}: other modules are trained by an adapter, or with method full",
                do="correct method.modules_to_save in the recipe",
            )
    found = [layer for layer in outer if any(_matches(layer, entry) for entry in wanted)]
    if found and structure.ties_embeddings:
        found = list(outer)
    if both := [layer for layer in found if any(_matches(layer, target) for target in targets)]:
        raise RecipeError(
            f"method.modules_to_save and method.targets both name {both[0].name}",
            expected="a module that is trained in whole, or one that carries an adapter",
            do=f"leave {both[0].kind} out of one of them",
        )
    # PEFT searches for what the names of modules end with, with no dot before it.
    everything = (*structure.adaptable, *structure.outside_layers)
    return tuple(
        layer.kind if sum(x.name.endswith(layer.kind) for x in everything) == 1 else layer.name for layer in found
    )


def num_saved_parameters(structure: Structure, names: Sequence[str]) -> int:
    """Parameters of the modules that are trained in whole, a shared matrix once."""
    layers = outer_targets(structure, names)
    if not layers:
        return 0
    matrices = layers[:1] if structure.ties_embeddings else layers
    is_head = layers[-1] == structure.outer_layers[-1]
    return sum(layer.num_parameters for layer in matrices) + (structure.num_head_biases if is_head else 0)


def num_lora_parameters(structure: Structure, targets: Sequence[str], rank: int) -> int:
    """rank x (inputs + outputs) over the matrices of resolved targets.

    Raises:
        RecipeError: the rank is above that of the smallest of the matrices.
    """
    layers = targeted(structure, targets)
    refuse_rank(layers, rank, "rank")
    return sum(rank * layer.num_matrices * (layer.num_inputs + layer.num_outputs) for layer in layers)


def refuse_rank(layers: Sequence[LinearLayer], rank: int, setting: str, *, divided_by: int = 1) -> None:
    """Raise RecipeError where a rank is above that of the smallest of the matrices.

    Args:
        layers: that carry the adapter; at least one.
        rank: of the setting.
        setting: its name, below `method`.
        divided_by: experts that a token meets, where the matrices are of experts (`expert_rank`).
    """
    # A matrix of m x n has a rank of at most min(m, n): beyond it an adapter only wastes memory.
    smallest, own = min(layers, key=lambda layer: layer.full_rank), max(1, rank // divided_by)
    if own > smallest.full_rank:
        share = f", {own} for each expert" if divided_by > 1 else ""
        shape = f"{smallest.num_outputs} x {smallest.num_inputs}"
        raise RecipeError(
            f"method.{setting} is {rank}{share}, but {smallest.name} is {shape}",
            expected=f"a rank of at most {(smallest.full_rank + 1) * divided_by - 1}",
            do=f"lower method.{setting}, or leave that matrix out of method.targets",
        )


def refuse_adapted_head(structure: Structure, targets: Sequence[str], objective: str) -> None:
    """Raise RecipeError where the head carries an adapter that the loss of the objective would not see."""
    # The head comes last, behind the embeddings.
    head = structure.outer_layers[-1:]
    if any(_matches(layer, t) for layer in head for t in targets) and not rules_of(objective).takes_adapted_head:
        others = ", ".join(name for name, one in OBJECTIVES.declarations().items() if one.takes_adapted_head)
        raise RecipeError(
            f"objective {objective} with an adapter on {head[0].name}",
            expected=f"{others}: other losses are computed from the head of the base",
            do=f"leave {head[0].name} out of method.targets",
        )


def refuse_idle_head(structure: Structure, modules_to_save: Sequence[str], objective: ObjectivePlan) -> None:
    """Raise RecipeError where a head that no loss reads would be trained in whole."""
    head = structure.outer_layers[-1:]
    is_saved = any(_matches(layer, name) for layer in head for name in modules_to_save)
    # A shared matrix is read as embeddings.
    if is_saved and objective.task_head is not None and not structure.ties_embeddings:
        raise RecipeError(
            f"objective {objective.name} with {head[0].kind} among method.modules_to_save",
            expected="embeddings alone: a task head takes the place of the output head, which would learn nothing",
            do=f"leave {head[0].kind} out of method.modules_to_save",
        )


def _group(structure: Structure, entry: str, experts: bool, left_out: Counter[str]) -> list[str]:
    """The names in a group, for any rank; what it leaves out is counted."""
    if entry == "experts":
        if not structure.experts:
            raise RecipeError(
                "method.targets: experts, but this model has none",
                expected=f"a model with experts (a mixture), or another group: {', '.join(GROUPS[:-1])}",
                do="correct method.targets in the recipe",
            )
        return [layer.name for layer in structure.experts]
    # Matrices outside the language model are looked at only to count them among those left out.
    found = []
    for layer in (*structure.linear_layers, *structure.outside_layers):
        if layer.role in _LEFT_OUT:
            # Counted for `all-linear` alone, which claims to be all: smaller groups leave things out by their meaning.
            left_out[_LEFT_OUT[layer.role]] += entry == "all-linear"
        elif entry == "all-linear" or _is_part(layer, entry):
            found.append(layer.name)
    if entry != "attention" and experts:
        found += [layer.name for layer in structure.experts if entry == "all-linear" or _is_part(layer, entry)]
    elif entry != "attention":
        left_out["matrices of experts"] += sum(layer.num_matrices for layer in structure.experts)
    # Adding 0 above has made entries, which would be reported as "0 matrices".
    for what in [what for what, count in left_out.items() if not count]:
        del left_out[what]
    return found


def _named(structure: Structure, entry: str) -> list[str]:
    """The names that a name or pattern means.

    Raises:
        RecipeError: an adapter there would be ignored.
    """
    found = _all(structure, entry)
    if custom := [x for x in structure.adaptable if x.role == "custom" and x.name in found]:
        raise RecipeError(
            f"method.targets: {entry!r} means {custom[0].name}, which computes more than a product with its matrix",
            expected="matrices that are multiplied with: an adapter adds to that product, and the rest would be lost",
            do=f"leave {custom[0].kind} out of method.targets, or use all-linear, which leaves it out",
        )
    kernel = [x.name for x in structure.linear_layers if x.role == "kernel" and x.name in found]
    if kernel:
        raise RecipeError(
            f"method.targets: {entry!r} means {kernel[0]}, whose weight other code reads past the module",
            expected="matrices that are called: an adapter on this one would be ignored where that code runs",
            do=f"leave {kernel[0].rpartition('.')[2]} out of method.targets, or use all-linear, which leaves it out",
        )
    return found


def _all(structure: Structure, entry: str) -> list[str]:
    everything = (*structure.adaptable, *structure.experts)
    if entry == "experts":
        return [layer.name for layer in structure.experts]
    if entry.startswith(_PATTERN):
        return [layer.name for layer in everything if _pattern(entry).fullmatch(layer.name)]
    return [layer.name for layer in everything if _matches(layer, entry)]


def _is_part(layer: LinearLayer, group: str) -> bool:
    # By the names of the modules around it: `o_proj` of attention and of an MLP differ by nothing else.
    in_attention = _ATTENTION.search(layer.name.rpartition(".")[0]) is not None
    return layer.layer is not None and in_attention == (group == "attention")


def _is_narrow(layer: LinearLayer, rank: int, structure: Structure) -> bool:
    """Whether a group leaves it out at this rank.

    So it is with gates, low-rank factors and decays of linear attention: all that is narrower than keys and values,
    which are the narrowest of the matrices that make up a block. A rank above those is refused, and not made to fit by
    taking most of the adapter away. Experts are too many to be named individually: they are left out at any width.
    """
    if layer.role == "expert":
        return layer.full_rank < expert_rank(structure, rank)
    keys = structure.num_kv_heads * structure.head_size or structure.hidden_size
    return layer.full_rank < min(rank, keys, structure.hidden_size)


def _count_narrow(narrow: Sequence[LinearLayer], rank: int, structure: Structure) -> dict[str, int]:
    """How many matrices were narrower than their rank, by a text that says which, and their share."""
    found: dict[str, int] = {}
    for what, own, layers in (
        ("matrices", rank, [x for x in narrow if x.role != "expert"]),
        ("matrices of experts", expert_rank(structure, rank), [x for x in narrow if x.role == "expert"]),
    ):
        if layers:
            share = sum(x.num_parameters for x in layers) / max(1, structure.num_matrix_parameters)
            # A list of projections has numbers for names, which mean nothing without the name of the list.
            kinds = {".".join(x.name.split(".")[-2 if x.kind.isdigit() else -1 :]) for x in layers}
            said = f"{share:.2%}" if share >= 1e-4 else "under 0.01%"
            text = f"{what} narrower than rank {own} ({', '.join(sorted(kinds))}: {said} of the parameters)"
            found[text] = sum(x.num_matrices for x in layers)
    return found


@lru_cache(maxsize=64)
def _pattern(entry: str) -> BoundedPattern:
    from luthier.core.system.bounded_regex import BoundedPattern

    try:
        return BoundedPattern("method.targets", entry.removeprefix(_PATTERN))
    except RequestError as error:
        raise RecipeError(
            f"method.targets: {entry[:100]!r} is not a pattern: {error.came.rpartition(': ')[2]}",
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
    # With only one end given, the other condition is never true.
    return layer.layer < (layers.first or 0) or layer.layer >= num_layers - (layers.last or 0)


def _shortened(chosen: Sequence[LinearLayer], structure: Structure) -> tuple[str, ...]:
    """A kind by its one name where all of it is chosen, else each matrix by its whole name.

    Modules outside the language model count, too: PEFT would match a tower's `q_proj` as well. So does
    what holds matrices and is none: `0` of a list of projections is the name of the first block as well.
    """
    names = {layer.name for layer in chosen}
    everything = (*structure.adaptable, *structure.outside_layers)
    containers = {part for layer in (*everything, *structure.experts) for part in layer.name.split(".")[:-1]}
    kinds = {layer.kind for layer in chosen} - containers
    whole = {k for k in kinds if all(x.name in names for x in everything if _matches(x, k))}
    return tuple(sorted(whole | {layer.name for layer in chosen if layer.kind not in whole}))


def _shortened_experts(chosen: Sequence[LinearLayer], structure: Structure) -> tuple[str, ...]:
    """`experts.down_proj` where all tensors of that name are chosen, else each by its whole name."""
    names = {layer.name for layer in chosen}
    short: dict[str, str] = {}
    for layer in chosen:
        parts = layer.name.rsplit(".", 2)
        own = ".".join(parts[-2:])
        # A short name is only safe if it matches nothing else in the model.
        is_whole = all(x.name in names for x in structure.experts if _matches(x, own))
        short[layer.name] = own if is_whole and parts[-2] == "experts" else layer.name
    return tuple(sorted(set(short.values())))


def _matches(layer: LinearLayer, target: str) -> bool:
    return layer.name == target or layer.name.endswith(f".{target}")


def _matches_nothing(what: str, structure: Structure, entry: str = "") -> RecipeError:
    inner: Iterable[LinearLayer] = (*structure.linear_layers, *structure.experts)
    kinds = [*sorted({layer.kind for layer in inner}), *(x.kind for x in structure.outer_layers)]
    near = f"; {suggest_ids(entry, [*kinds, *GROUPS])}" if entry and not entry.startswith(_PATTERN) else ""
    return RecipeError(
        f"method.targets: {what} matches no linear layer of this model{near}",
        expected=f"{', '.join(GROUPS)}, `{_PATTERN}PATTERN`, or some of {', '.join(kinds)}",
        do="correct method.targets in the recipe",
    )
