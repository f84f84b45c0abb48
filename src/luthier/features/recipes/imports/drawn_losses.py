"""The loss of GRPO, by the names that TRL 1 has and tools built on it take over.

Answers are used for one update here and by TRL's defaults, so that the ratio of the new to the old probability is 1 at
each step. Then losses that differ only in how they clip that ratio have the same gradient.
"""

from __future__ import annotations

from typing import Any, Final

from luthier.features.recipes.imports.hf_arguments import number
from luthier.features.recipes.imports.translation import Translation

WEIGHTINGS: Final = {
    "dapo": "token", "bnpo": "token", "cispo": "token", "grpo": "sample", "sapo": "sample", "dr_grpo": "fixed",
}  # fmt: skip
NOTE: Final = "dapo, bnpo, cispo: token; grpo, sapo: sample; dr_grpo: fixed"
SAME_LEVELS: Final = "draws are used for one update, so that both levels have the same gradient"


def put_drawn_loss(t: Translation, key: str, high_key: str) -> None:
    """Translate the loss of GRPO to the weighting of its tokens.

    Args:
        t: The translation under way.
        key: Their key of the loss.
        high_key: Their key of the upper end of the ratio, which `cispo` limits itself and not only its gradient.
    """
    loss, high = str(t.take(key, "dapo")), number(t.take(high_key))
    t.same(high_key, "draws are used for one update, so that clipping never acts")
    if loss == "cispo" and not _is_at_least_one(high):
        note = f"with {high_key} below 1, and that is its default, cispo scales the gradient"
        t.refuse(key, note, set_by="objective.loss_weighting")
    elif loss in WEIGHTINGS:
        t.put("objective.loss_weighting", WEIGHTINGS[loss], key, default="dapo")
    else:
        t.refuse(key, f"known here: {', '.join(WEIGHTINGS)}", set_by="objective.loss_weighting")


def _is_at_least_one(high: Any) -> bool:
    return isinstance(high, int | float) and high >= 1
