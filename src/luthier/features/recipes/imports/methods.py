"""How the weights change, from the switches that tools built on PEFT have for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.features.recipes.imports.peft_targets import default_targets
from luthier.features.recipes.imports.translation import Translation

ALL_LINEAR: Final = "in a mixture of experts the experts get adapters, too; see method.targets"
_TIED: Final = "where embeddings and head share one matrix, either name trains it for both"
_IS_PATTERN: Final = re.compile(r"[\\()\[\]|*+?^$]")


@dataclass(frozen=True, slots=True)
class AdapterKeys:
    """The names of a tool's keys for an adapter; empty where it has no such key.

    Attributes:
        switches: The keys that decide `method.name`.
        rank: The key of the rank.
        alpha: The key of alpha.
        dropout: The key of the dropout.
        targets: The key of the target modules.
        default_rank: What the tool takes; None: it has no default.
        default_alpha: The same for alpha.
        default_dropout: The same for dropout.
        default_targets: The same for targets.
        modules_to_save: Modules that are trained in whole.
        whole_targets: Names that the tool takes out of the targets and trains in whole.
        model: The key of the base model, where PEFT chooses the targets if the file names none.
    """

    switches: tuple[str, ...]
    rank: str
    alpha: str
    dropout: str
    targets: str
    default_rank: int | None
    default_alpha: int | None
    default_dropout: float
    default_targets: Any
    modules_to_save: str = ""
    whole_targets: tuple[str, ...] = ()
    model: str = ""


def put_name(
    t: Translation,
    switches: Sequence[str],
    *,
    is_4bit: bool = False,
    is_8bit: bool = False,
    variants: dict[str, bool],
    default: str = "",
) -> str:
    """Decide `method.name` of an adapter.

    Args:
        t: The translation, with the keys of the file.
        switches: The keys that decide.
        is_4bit, is_8bit: Whether the base is quantised.
        variants: Variants of LoRA, by name, and whether they are on.
        default: What the tool does where no switch is given, for people.
    """
    chosen = [name for name, is_on in variants.items() if is_on]
    is_quantised = is_4bit or is_8bit
    if len(chosen) + is_quantised > 1:
        both = [*(["a quantised base"] if is_quantised else []), *chosen]
        for key in switches:
            if t.given.get(key):
                t.refuse(key, f"no method does all of {', '.join(both)}", set_by="method.name")
        return "lora"
    name = "qlora" if is_quantised else chosen[0] if chosen else "lora"
    t.put("method.name", name, *switches, default=default or None)
    if is_quantised:
        t.put("method.quantisation", "nf4" if is_4bit else "int8", *switches, default=default or None)
    return name


def put_adapter(t: Translation, keys: AdapterKeys, *, disables_dropout: bool = False) -> None:
    """Rank, alpha, dropout and targets, with the tool's defaults written out."""
    rank = t.take(keys.rank, keys.default_rank)
    if rank is None:
        t.refuse(keys.rank, "the tool has no default for the rank", set_by="method.rank")
    else:
        t.put("method.rank", rank, keys.rank, default=keys.default_rank)
    alpha = t.take(keys.alpha, keys.default_alpha)
    if alpha is None:
        t.refuse(keys.alpha, "the tool has no default for alpha", set_by="method.alpha")
    else:
        t.put("method.alpha", float(alpha), keys.alpha, default=keys.default_alpha)
    dropout = t.take(keys.dropout, keys.default_dropout)
    note = "this trainer turns dropout off" if disables_dropout and dropout else ""
    t.put("method.dropout", 0.0 if disables_dropout else float(dropout), keys.dropout, default=dropout, note=note)
    put_targets(t, keys)


def put_targets(t: Translation, keys: AdapterKeys) -> None:
    """Which matrices carry an adapter, and which modules are trained in whole beside it."""
    targets = t.take(keys.targets, keys.default_targets)
    if isinstance(targets, str) and _IS_PATTERN.search(targets):
        # As in PEFT: one text is a pattern that has to match the whole name of a module.
        t.put("method.targets", f"re:{targets}", keys.targets, note="a pattern for whole names of modules")
        if keys.modules_to_save:
            put_modules_to_save(t, keys.modules_to_save)
        return
    if isinstance(targets, str):
        targets = [name.strip() for name in targets.split(",")]
    whole = [name for name in targets or () if name in keys.whole_targets]
    targets = [name for name in targets or () if name not in whole]
    if not targets and (chosen := default_targets(t, keys.model) if keys.model else ()):
        t.put("method.targets", list(chosen), keys.targets, note="as PEFT chooses them")
    elif not targets:
        note = "PEFT chooses them by the architecture: name them, such as [q_proj, v_proj]"
        t.refuse(keys.targets, note, set_by="method.targets")
    else:
        is_all = targets in (["all"], ["all-linear"], ["all_linear"])
        places = "all-linear" if is_all else list(targets)
        note = ALL_LINEAR if is_all else ""
        t.put("method.targets", places, keys.targets, default=keys.default_targets, note=note)
    if keys.modules_to_save:
        put_modules_to_save(t, keys.modules_to_save, *([keys.targets] if whole else []), also=whole)


def put_modules_to_save(t: Translation, key: str, *others: str, also: Sequence[str] = ()) -> None:
    """What is trained in whole beside the adapter; whether the model has such modules, its plan says.

    Args:
        t: The translation, with the keys of the file.
        key: The key of these modules.
        others: Further keys that name some.
        also: The names in these.
    """
    modules = t.take(key, [])
    names = [name.strip() for name in modules.split(",")] if isinstance(modules, str) else list(modules)
    if names := list(dict.fromkeys([*names, *also])):
        t.put("method.modules_to_save", names, *[one for one in (key, *others) if t.has(one)], note=_TIED)
    t.same(key, "none")
