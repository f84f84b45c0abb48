"""The loss of preference pairs, by the names that TRL 1 has and tools built on it take over."""

from __future__ import annotations

from typing import Final, get_args

from luthier.core.recipe import PairLoss
from luthier.features.recipes.imports.hf_arguments import number
from luthier.features.recipes.imports.translation import Translation

NOTE: Final = f"ipo; {', '.join(get_args(PairLoss))}: dpo with this loss_type; others, and several at once, are refused"
_KNOWN: Final = ("ipo", *get_args(PairLoss))


def put_pair_loss(t: Translation, loss_key: str, smoothing_key: str) -> None:
    """Translate the loss of DPO and its label smoothing, which TRL 1 uses in some of them alone.

    Args:
        t: The translation under way.
        loss_key: Their key of the loss: a name, or a list of names.
        smoothing_key: Their key of the label smoothing.
    """
    given = t.take(loss_key, "sigmoid")
    names = [str(name) for name in given] if isinstance(given, list) else [str(given)]
    smoothing = number(t.take(smoothing_key, 0.0))
    kind = names[0] if len(names) == 1 else ""
    if kind == "ipo":
        t.put("objective.name", "ipo", loss_key)
    elif kind in get_args(PairLoss):
        t.put("objective.name", "dpo", loss_key, default="sigmoid")
        # Without smoothing it is the same loss, which the recipe has by that name.
        is_plain = kind == "sigmoid" or (kind == "robust" and smoothing == 0)
        if not is_plain:
            t.put("objective.loss_type", kind, loss_key)
        elif kind == "robust":
            t.put("objective.loss_type", "sigmoid", loss_key, note="robust without label smoothing is sigmoid")
        if kind in ("robust", "exo_pair") and smoothing:
            t.put("objective.label_smoothing", smoothing, smoothing_key)
    elif len(names) == 1:
        t.refuse(loss_key, f"known here: {', '.join(_KNOWN)}", set_by="objective.loss_type")
    else:
        note = (
            "one loss is trained; the cross-entropy that `sft` adds is objective.nll_weight, which has the mean of "
            "each answer where TRL has the mean over all tokens of a batch"
        )
        t.refuse(loss_key, note, set_by="objective.loss_type")
    t.same(smoothing_key, "TRL 1 uses it in robust and exo_pair alone" if smoothing else "off")
