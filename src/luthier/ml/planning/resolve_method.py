"""The method's part of a plan: the recipe's settings, checked against the rules of the method, and completed.

The frozen base of QLoRA is held in 4 bits where a library computes them well, and in 8 bits of our own elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Final

from luthier.core.errors import RecipeError
from luthier.core.plan import MethodPlan, Quantisation, Source
from luthier.core.recipe import MethodRecipe, QuantisationName
from luthier.core.system.extras import install_command
from luthier.ml.inference.models.structure import FEED_FORWARD_OUTPUTS, LinearLayer, Structure
from luthier.ml.planning.adapter import (
    Placement,
    expert_rank,
    num_saved_parameters,
    outer_targets,
    place_adapters,
    reach,
    refuse_rank,
    resolve_modules_to_save,
    targeted,
)
from luthier.ml.planning.defaults import Provenance
from luthier.ml.training.methods.rules import RULES, MethodRules, rules_of

LIBRARY = "bitsandbytes"


def choose_quantisation(asked: QuantisationName | None, device: str) -> tuple[Quantisation, Source, str]:
    """The kind, where it comes from, and why.

    nf4: NormalFloat of 4 bits with doubly quantised scales (Dettmers et al., 2023, arXiv:2305.14314, section 3), about
    0.52 bytes a weight. int8: one scale an output, 1 byte a weight. bfloat16: 2 bytes, and nothing is rounded of a base
    that was published so; for products in float32.

    Raises:
        RecipeError: nf4 without the library that computes it.
    """
    # Looked up without importing: bitsandbytes loads CUDA libraries.
    has_library = find_spec(LIBRARY) is not None
    if asked == "nf4" and not has_library:
        raise RecipeError(
            f"method.quantisation is nf4, but {LIBRARY} is not installed",
            expected="the library that packs weights into 4 bits",
            do=f"install it ({install_command('nf4')}), or leave method.quantisation out: int8 needs no library",
        )
    if asked in ("nf4", "int8", "bfloat16"):
        return asked, "asked", "in the recipe"
    if device == "mps":
        return "int8", "derived", f"{LIBRARY} was not tested on mps: 1 byte a weight, by Luthier itself"
    if has_library:
        return "nf4", "derived", f"{LIBRARY} is installed: 0.52 bytes a weight on {device}"
    return "int8", "derived", f"{LIBRARY} is not installed: 1 byte a weight, by Luthier itself"


def packed_share(structure: Structure) -> str:
    """How many parameters are packed, and which are not: those stay as wide as they are computed with.

    Packing takes matrices that are called. Experts in one tensor are not, nor are embeddings and head, nor
    matrices whose weight other code reads past their module.
    """
    s = structure
    experts = sum(layer.num_parameters for layer in s.experts)
    others = s.num_parameters - s.num_packed_parameters - s.num_embedding_parameters - experts
    parts = (
        ("of experts in one tensor", experts),
        ("of embeddings and head", s.num_embedding_parameters),
        ("that are not matrices or are read past their module", others),
    )
    wide = ", ".join(f"{count:,} {what}" for what, count in parts if count > 0)
    said = f"packs {s.num_packed_parameters:,} of {s.num_parameters:,} parameters"
    return f"{said}; in the precision of the run stay {wide}" if wide else said


_KEYS_AND_VALUES: Final = ("k_proj", "v_proj", "key", "value", "query_key_value", "qkv_proj", "c_attn", "Wqkv")
_WITH_EXPERTS: Final = tuple(name for name, rules in RULES.items() if rules.takes_experts)
_EXPERTS_HOW: Final = "experts of a block are in one tensor, each matrix gets a separate product, without dropout"
_WITH_OUTER: Final = tuple(name for name, rules in RULES.items() if rules.takes_outer)
_PLAIN: Final = ("learning_rate_ratio", "num_svd_iterations", "num_virtual_tokens")
_IMPORTANCE: Final = ("orthogonality_weight", "sensitivity_smoothing", "uncertainty_smoothing")


def resolve_method(
    recipe: MethodRecipe | None, structure: Structure, device: str, sources: Provenance, *, why_no_experts: str = ""
) -> MethodPlan:
    """Everything about the method but what depends on the number of steps (`with_schedule`).

    Args:
        recipe: what is asked of the method; None for nothing.
        structure: of the base model.
        device: such as "cpu" or "cuda".
        sources: gets where each value comes from.
        why_no_experts: where groups such as `all-linear` are to leave experts out, the reason; empty where they are
            not.

    Raises:
        RecipeError: settings that the method does not take, targets that match nothing, ranks above a matrix.
    """
    asked = recipe or MethodRecipe(name="lora")
    why = "in the recipe" if recipe else "trains a small share of the weights at nearly full quality"
    sources.note("method.name", "asked" if recipe else "default", why)
    rules = rules_of(asked.name)
    # First: a setting of another method would otherwise be ignored in silence.
    _refuse_unused(asked, rules)
    pick = _Picker(asked, rules, sources)
    place = _placement(pick, structure, why_no_experts)
    targets = place.targets
    layers = targeted(structure, targets, place.expert_targets)
    _refuse_outer(asked.name, rules, outer_targets(structure, targets))
    saved = _modules_to_save(pick, structure, targets)
    ranks = _ranks(pick, layers)
    if place.expert_targets:
        ranks["expert_rank"] = _expert_rank(ranks["rank"], layers, structure)
    _note_reach(place, ranks, structure, sources, why_no_experts)
    plain: dict[str, Any] = {name: pick.value(name) for name in (*_PLAIN, *_IMPORTANCE) if name in rules.settings}
    # Which kind works depends on the device, so this one is not in `_PLAIN`.
    if "quantisation" in rules.settings:
        kind, source, why = choose_quantisation(asked.quantisation, device)
        sources.note("method.quantisation", source, f"{why}; {packed_share(structure)}")
        plain["quantisation"] = kind
    method = MethodPlan(
        name=asked.name,
        targets=targets,
        modules_to_save=saved,
        num_saved_parameters=num_saved_parameters(structure, saved),
        expert_targets=place.expert_targets,
        # Counted below, when all that it depends on is known.
        num_trainable_parameters=0,
        options=asked.options or {},
        **ranks,
        **plain,
    )
    return _counted(method, layers, structure, rules, sources)


def with_schedule(method: MethodPlan, recipe: MethodRecipe | None, num_steps: int, sources: Provenance) -> MethodPlan:
    """The plan with AdaLoRA's schedule fitted into the run; other methods come back as they are.

    Args:
        method: as resolved so far.
        recipe: what was asked for.
        num_steps: optimizer steps of the run.
        sources: takes where the values come from.

    Raises:
        RecipeError: warm-up and final phase leave no step for taking ranks away.
    """
    rules = rules_of(method.name)
    if "warmup_steps" not in rules.settings:
        return method
    pick = _Picker(recipe or MethodRecipe(name=method.name), rules, sources)
    warmup = pick.value("warmup_steps", num_steps // 10)
    final = pick.asked("final_steps", 2 * num_steps // 5)
    # About fifty times within the middle phase, for any length.
    every = pick.value("reallocate_every_steps", max(1, (num_steps - warmup - final) // 50))
    last = num_steps - final
    if warmup >= last:
        raise RecipeError(
            f"{method.name} with method.warmup_steps {warmup} and method.final_steps {final} in a run of {num_steps} "
            "steps",
            expected=f"together less than {num_steps}: between them ranks are taken away",
            do="lower them, leave them out, or train for more steps",
        )
    reason = f"{final} steps before the end: from there on the ranks stay"
    sources.note("method.last_reallocation_step", "derived" if pick.is_silent("final_steps") else "asked", reason)
    return method.model_copy(
        update={"warmup_steps": warmup, "last_reallocation_step": last, "reallocate_every_steps": every}
    )


def virtual_tokens(recipe: MethodRecipe | None) -> int:
    """How many trained tokens precede each text; 0 for methods without such a prompt."""
    if recipe is None or "num_virtual_tokens" not in rules_of(recipe.name).settings:
        return 0
    return int(recipe.num_virtual_tokens or rules_of(recipe.name).settings["num_virtual_tokens"][0])


class _Picker:
    """Takes settings from the recipe, else from the method's rules, and notes which."""

    def __init__(self, recipe: MethodRecipe, rules: MethodRules, sources: Provenance) -> None:
        self.recipe, self.rules, self.sources = recipe, rules, sources

    def is_silent(self, name: str) -> bool:
        return getattr(self.recipe, name) is None

    def asked(self, name: str, derived: Any = None) -> Any:
        """The asked value, or the default, or the derived one, without a note."""
        given = getattr(self.recipe, name)
        default, _ = self.rules.settings[name]
        return given if given is not None else derived if default is None else default

    def value(self, name: str, derived: Any = None, *, noted_as: str | None = None) -> Any:
        """The same, noted under its own name or another."""
        found, reason = self.asked(name, derived), self.rules.settings[name][1]
        source: Source = "default" if self.is_silent(name) else "asked"
        self.sources.note(f"method.{noted_as or name}", source, reason if source == "default" else "in the recipe")
        return found


def _refuse_unused(asked: MethodRecipe, rules: MethodRules) -> None:
    fields = [name for name in MethodRecipe.model_fields if name not in ("name", "options")]
    given = [name for name in fields if getattr(asked, name) is not None and name not in rules.settings]
    if asked.options and "options" not in rules.settings:
        given.append("options")
    if given:
        takes = ", ".join(f"method.{name}" for name in rules.settings)
        raise RecipeError(
            f"method {asked.name} with {', '.join(f'method.{name}' for name in given)}",
            expected=f"settings that {asked.name} takes: {takes or 'none'}; {rules.why_not}",
            do=f"remove {'it' if len(given) == 1 else 'them'}, or choose another method",
        )


def _refuse_outer(method: str, rules: MethodRules, outer: Sequence[LinearLayer]) -> None:
    if outer and not rules.takes_outer:
        names = ", ".join(layer.name for layer in outer)
        raise RecipeError(
            f"method {method} on {names}",
            expected=f"{', '.join(_WITH_OUTER)} for embeddings and head; {method} on matrices between them",
            do="leave them out of method.targets, or choose one of these methods",
        )


def _ranks(pick: _Picker, targeted_layers: Sequence[LinearLayer]) -> dict[str, Any]:
    """rank, alpha, dropout and target_rank; zero where the method has none.

    The rank of experts is a share of it (`_expert_rank`).

    Raises:
        RecipeError: a rank is above that of the smallest matrix, or the initial rank is below the target rank.
    """
    settings: Mapping[str, Any] = pick.rules.settings
    layers = [layer for layer in targeted_layers if layer.role != "expert"]
    found: dict[str, Any] = {"rank": 0, "alpha": 0.0, "dropout": 0.0}
    if "target_rank" in settings:
        found["target_rank"] = target = pick.value("target_rank")
        refuse_rank(layers, target, "target_rank")
        # One initial rank for all, so the smallest matrix limits it.
        most = min(layer.full_rank for layer in layers)
        # AdaLoRA starts above its target rank and takes ranks away, but no matrix has more than its smaller side.
        found["rank"] = pick.value("initial_rank", min(most, _usual_initial_rank(target)), noted_as="rank")
        refuse_rank(layers, found["rank"], "initial_rank")
        if found["rank"] < target:
            raise RecipeError(
                f"method.initial_rank is {found['rank']}, method.target_rank {target}",
                expected="an initial rank of at least the target rank: ranks are only ever taken away",
                do="raise method.initial_rank, or leave it out",
            )
    elif "rank" in settings:
        found["rank"] = pick.value("rank")
        # A method on experts alone has no other matrices to check the rank against.
        if layers:
            refuse_rank(layers, found["rank"], "rank")
    if "alpha" in settings:
        found["alpha"] = float(pick.value("alpha", pick.rules.alpha_over_rank * found["rank"]))
    if "dropout" in settings:
        found["dropout"] = pick.value("dropout")
    return found


def _placement(pick: _Picker, structure: Structure, why_no_experts: str) -> Placement:
    """Where the adapter goes; nowhere for a method without targets.

    Raises:
        RecipeError: experts by name where the method cannot be put on them.
    """
    if "targets" not in pick.rules.settings:
        return Placement(())
    # (IA)3 scales keys, values and feed-forward outputs, which are named differently in each architecture.
    usual = _ia3_targets(structure) if pick.rules.settings["targets"][0] is None else None
    asked = pick.value("targets", usual)
    layers = pick.recipe.layers
    if layers is not None:
        ends = [f"the {end} {count}" for end, count in (("first", layers.first), ("last", layers.last)) if count]
        pick.sources.note("method.targets", "asked", f"within {' and '.join(ends) or 'no'} layers")
    takes = pick.rules.takes_experts
    rank = _largest_rank(pick)
    place = place_adapters(structure, asked, layers, rank=rank, experts=takes and not why_no_experts)
    if place.expert_targets and not takes:
        if not place.targets or "experts" in ([asked] if isinstance(asked, str) else asked):
            raise RecipeError(
                f"method {pick.recipe.name} on experts ({', '.join(place.expert_targets)})",
                expected=f"{', '.join(_WITH_EXPERTS)} on tensors that hold the matrices of many experts; "
                f"{pick.recipe.name} on single matrices",
                do="leave experts out of method.targets, or choose one of these methods",
            )
        # a name such as down_proj means single matrices, too: the method takes those
        num = sum(x.num_matrices for x in targeted(structure, (), place.expert_targets))
        place = replace(place, expert_targets=(), left_out=place.left_out | {"matrices of experts": num})
    return place


def _modules_to_save(pick: _Picker, structure: Structure, targets: Sequence[str]) -> tuple[str, ...]:
    """What is trained in whole beside the adapter; noted only where it is asked for.

    Raises:
        RecipeError: a module that is neither embeddings nor head, or carries an adapter.
    """
    saved = resolve_modules_to_save(structure, pick.recipe.modules_to_save, targets)
    if saved:
        num = num_saved_parameters(structure, saved)
        why = f"in the recipe: {num:,} parameters, fully trained"
        if structure.ties_embeddings:
            why = f"in the recipe: embeddings and head share {num:,} parameters, fully trained"
        pick.sources.note("method.modules_to_save", "asked", why)
    return saved


def _largest_rank(pick: _Picker) -> int:
    """The largest rank of the run, which what carries an adapter must have room for; 0 for a method without one."""
    if "target_rank" in pick.rules.settings:
        return int(pick.asked("initial_rank", _usual_initial_rank(pick.asked("target_rank"))))
    return int(pick.asked("rank")) if "rank" in pick.rules.settings else 0


def _usual_initial_rank(target: int) -> int:
    return max(target + 1, target * 3 // 2)


def _expert_rank(rank: int, layers: Sequence[LinearLayer], structure: Structure) -> int:
    """The rank of experts.

    Raises:
        RecipeError: the rank is above that of the smallest expert matrix times the experts that a token meets.
    """
    routed = [layer for layer in layers if layer.role == "expert"]
    refuse_rank(routed, rank, "rank", divided_by=max(1, structure.num_active_experts))
    return expert_rank(structure, rank)


def _note_reach(
    place: Placement, ranks: Mapping[str, Any], structure: Structure, sources: Provenance, why_no_experts: str
) -> None:
    """Notes with the targets what they cover, where that is not every matrix of the model."""
    if place.expert_targets:
        why = (
            f"rank {ranks['rank']} divided by {structure.num_active_experts} experts a token, at least 1: as much for "
            "each token as in a dense model"
        )
        sources.note("method.expert_rank", "derived", why)
        sources.note("method.expert_targets", "derived" if place.experts_by_group else "asked", _EXPERTS_HOW)
    if "method.targets" not in sources.found or not (place.expert_targets or place.left_out or structure.experts):
        return
    known, found = sources.found["method.targets"], reach(structure, place.targets, place.expert_targets)
    said = (
        f"{known.why}; reaches {found.share:.1%} of the parameters in the language model's matrices "
        f"({found.num:,} of {found.num_all:,} matrices) and {found.active_share:.1%} of those that a token meets"
    )
    left_out = [f"{count:,} {what}" for what, count in place.left_out.items() if count]
    said += f"; left out: {', '.join(left_out)}" if left_out else ""
    said += f" ({why_no_experts})" if why_no_experts else ""
    sources.note("method.targets", known.source, said)


def _ia3_targets(structure: Structure) -> tuple[str, ...]:
    """Keys, values and the last matrix of the MLP, by the names that architectures give them."""
    kinds = {layer.kind for layer in structure.linear_layers if layer.role == "block"}
    return tuple(name for name in (*_KEYS_AND_VALUES, *FEED_FORWARD_OUTPUTS) if name in kinds) or tuple(sorted(kinds))


def _counted(
    method: MethodPlan, layers: Sequence[LinearLayer], structure: Structure, rules: MethodRules, sources: Provenance
) -> MethodPlan:
    count = rules.count(structure, layers, method) + method.num_saved_parameters
    share = count / structure.num_parameters
    why = "all of them" if method.name == "full" else f"{share:.2%} of {structure.num_parameters:,}"
    sources.note("method.num_trainable_parameters", "derived", why)
    return method.model_copy(update={"num_trainable_parameters": count})
