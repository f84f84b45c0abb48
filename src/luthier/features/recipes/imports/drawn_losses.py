"""The loss of GRPO, by the names that TRL 1 has and tools built on it take over.

Where answers are used for one update, which is the default here and there, the ratio of the new to the old probability
is 1 at each step. Then losses that differ only in how they clip that ratio have the same gradient. With several updates
only the clipped loss of single tokens is the one that is here.

A step is a batch of answers here and an update there: with several updates numbers of steps are divided by them.
"""

from __future__ import annotations

from typing import Any, Final

from luthier.features.recipes.imports.hf_arguments import number
from luthier.features.recipes.imports.translation import Key, Translation, becomes

WEIGHTINGS: Final = {
    "dapo": "token", "bnpo": "token", "cispo": "token", "grpo": "sample", "sapo": "sample", "dr_grpo": "fixed",
}  # fmt: skip
NOTE: Final = "dapo, bnpo, cispo: token; grpo, sapo: sample; dr_grpo: fixed"
_OF_ONE_UPDATE: Final = ("cispo", "sapo")
"""Losses that are the ones here only where answers are used for one update."""
_SAME_LEVELS: Final = "draws are used for one update, so that both levels have the same gradient"
_NEVER_CLIPPED: Final = "draws are used for one update, so that clipping never acts"
_COUNTS: Final = (
    ("training.max_steps", "max_steps"),
    ("training.warmup_steps", "warmup_steps"),
    ("training.validate_every_steps", "eval_steps"),
    ("training.checkpoint_every_steps", "save_steps"),
)


def keys(prefix: str, *, has_delta: bool) -> dict[str, Key]:
    """The table of the keys about several updates.

    Args:
        prefix: Of their section, with its full stop.
        has_delta: Whether the tool knows a second end of clipping.
    """
    found = {
        "num_iterations": becomes("objective.num_iterations", note="numbers of steps are divided by it"),
        "epsilon": becomes(
            "objective.clip_ratio_low", "objective.clip_ratio_high", note="num_iterations above 1; else it never acts"
        ),
        "epsilon_high": becomes(
            "objective.clip_ratio_high",
            "objective.loss_weighting",
            note="num_iterations above 1, else it never acts; of cispo: at least 1",
        ),
        "importance_sampling_level": becomes(
            "objective.num_iterations", note="token; sequence is refused where num_iterations is above 1"
        ),
    }
    if has_delta:
        found["delta"] = becomes("objective.num_iterations", note="refused where num_iterations is above 1")
    return {prefix + name: key for name, key in found.items()}


def put_drawn_loss(t: Translation, prefix: str = "", *, has_delta: bool) -> None:
    """Translate the loss of GRPO: the weighting of its tokens, its updates and its clipping.

    Args:
        t: The translation under way.
        prefix: Of their section, with its full stop.
        has_delta: As for `keys`.
    """
    key, high_key, delta_key = f"{prefix}loss_type", f"{prefix}epsilon_high", f"{prefix}delta"
    loss, high = str(t.take(key, "dapo")), number(t.take(high_key))
    delta = t.take(delta_key) if has_delta else None
    several = _put_updates(t, prefix) > 1
    if several and delta is not None:
        t.refuse(delta_key, "a second end of clipping is not known here where num_iterations is above 1")
    if loss == "cispo" and not several and not _is_at_least_one(high):
        note = f"with {high_key} below 1, and that is its default, cispo scales the gradient"
        t.refuse(key, note, set_by="objective.loss_weighting")
    elif several and loss in _OF_ONE_UPDATE:
        t.refuse(key, "known here where num_iterations is above 1: dapo, bnpo, grpo, dr_grpo")
    elif loss in WEIGHTINGS:
        t.put("objective.loss_weighting", WEIGHTINGS[loss], key, default="dapo")
    else:
        t.refuse(key, f"known here: {', '.join(WEIGHTINGS)}", set_by="objective.loss_weighting")
    leave_out(t, prefix, _NEVER_CLIPPED, has_delta=has_delta)


def _put_updates(t: Translation, prefix: str) -> int:
    """The updates for each sample, and the clipping that several of them need; returns their number."""
    key, low_key, high_key = f"{prefix}num_iterations", f"{prefix}epsilon", f"{prefix}epsilon_high"
    level_key = f"{prefix}importance_sampling_level"
    if t.has(key) or "objective.num_iterations" in t.settled:
        t.put("objective.num_iterations", int(t.take(key, 1)), key)
    num, level = num_updates(t, prefix), str(t.take(level_key, "token"))
    low, high = number(t.take(low_key, 0.2)), number(t.take(high_key))
    if num == 1:
        t.same(level_key, _SAME_LEVELS)
        return num
    t.put("objective.clip_ratio_low", low, low_key, default=0.2)
    if high is None:
        t.put("objective.clip_ratio_high", low, *([low_key] if t.has(low_key) else []))
    else:
        t.put("objective.clip_ratio_high", high, high_key)
    if level != "token":
        t.refuse(level_key, "known here where num_iterations is above 1: token")
    t.same(level_key, "each token has its own ratio")
    return num


def num_updates(t: Translation, prefix: str = "") -> int:
    """The updates for each sample, by the file or by `--set`."""
    settled = t.settled.get("objective.num_iterations")
    # At least 1: what is no number of updates is refused with the recipe.
    return max(1, int(t.take(f"{prefix}num_iterations", 1) if settled is None else settled))


def leave_out(t: Translation, prefix: str, note: str, *, has_delta: bool) -> None:
    """Note that keys about several updates leave training as it is, unless they were translated.

    Args:
        t: The translation under way.
        prefix: Of their section, with its full stop.
        note: Why.
        has_delta: As for `keys`.
    """
    for key in keys(prefix, has_delta=has_delta):
        t.same(key, note)


def divide_steps(t: Translation, num: int) -> None:
    """Divide the numbers of steps of the recipe, which count updates in the file, by the updates for each sample.

    Args:
        t: The translation under way, after all else.
        num: Updates for each sample.
    """
    if num == 1:
        return
    for place, key in _COUNTS:
        if (updates := t.recipe.get(place)) is None:
            continue
        if place == "training.max_steps" and updates % num:
            note = f"{updates:,} updates are not a whole number of samples with {num:,} updates each"
            t.refuse(key, note, set_by=place)
        else:
            # Rounded up: a warm-up of at least as many updates, and no more validations and checkpoints.
            t.put(place, -(-updates // num), key, note=f"{updates:,} updates, of which a step has {num:,}")
    t.notes.append(
        f"a step has {num:,} updates with the same answers: here the learning rate changes with each step, in TRL with "
        "each update"
    )


def _is_at_least_one(high: Any) -> bool:
    return isinstance(high, int | float) and high >= 1
