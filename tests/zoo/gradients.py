"""Loss and gradients of each layout of rows against plain transformers, in float32 and where need be in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tests.float64 import all_in_float64
from tests.zoo import plain
from torch import Tensor, nn

from luthier.core.dataset import TokenisedExample

if TYPE_CHECKING:
    from tests.zoo.walk import Stage

    from luthier.ml.training.model import TrainableModel


@torch.no_grad()
def stir(model: TrainableModel) -> None:
    """Give what is trained other values than those of its start, where half of a LoRA is zero."""
    draw = torch.Generator().manual_seed(1)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)


def compared(stage: Stage, model: TrainableModel, rows: tuple[TokenisedExample, ...], other: nn.Module) -> str:
    """Hold each layout of the rows that the model takes against what transformers says; returns the layouts.

    other: the same weights in transformers; both models are in float64 afterwards where float32 did not settle it.
    """
    from luthier.ml.training.equivalence import why_not_packed

    layouts = {"padded": ()}
    if why_not_packed(model) is None:
        layouts["packed"] = (0,)
    if model.can_share_prefix():
        layouts["shared"] = (_num_shared(rows),)
    model.module.eval()
    theirs, unsettled = plain.loss_and_gradients(other, rows), {}
    for layout, prefix_lengths in layouts.items():
        value, gradients = _ours(model, rows, prefix_lengths)
        stage.measured(f"{layout}_loss", plain.relative(value, theirs[0]), plain.LOSS_SHARE)
        worst, name = plain.worst_gradient(gradients, theirs[1])
        stage.outcome.path = name
        stage.outcome.measures[f"{layout}_gradient"] = worst
        if not worst <= plain.GRADIENT_SHARE:
            unsettled[layout] = gradients
    way = model.path
    how = "fast path" if way.is_fast else f"attention {way.attention}, logits {way.logits}"
    settled = ""
    if unsettled:
        _settle_in_float64(stage, model, rows, other, theirs[1], {key: layouts[key] for key in unsettled}, unsettled)
        settled = f"; float64 settles the gradients of {', '.join(unsettled)}"
    return f"{how}; rows {', '.join(layouts)}{settled}"


def _settle_in_float64(
    stage: Stage,
    model: TrainableModel,
    rows: tuple[TokenisedExample, ...],
    other: nn.Module,
    theirs: dict[str, Tensor],
    layouts: dict[str, tuple[int, ...]],
    ours: dict[str, dict[str, Tensor]],
) -> None:
    """Tell rounding from a fault where two gradients in float32 differ by more than `plain.GRADIENT_SHARE`.

    A model may be so ill-conditioned that its own float32 gradient is further than that from the truth (Gemma 4, whose
    attention takes scores as they are, without a scale): then two right orders of the same sums differ by as much. In
    float64 both must agree by far more, which no fault survives; and in float32 ours may not be further from the truth
    than transformers' own by more than the bound.
    """
    model.module.double()
    other.double()
    other.zero_grad()
    with all_in_float64():
        truth = plain.loss_and_gradients(other, rows)
        for layout, prefix_lengths in layouts.items():
            value, gradients = _ours(model, rows, prefix_lengths)
            stage.measured(f"{layout}_loss_float64", plain.relative(value, truth[0]), plain.FLOAT64_SHARE)
            stage.measured(
                f"{layout}_gradient_float64", plain.worst_gradient(gradients, truth[1])[0], plain.FLOAT64_SHARE
            )
    own = plain.worst_gradient(theirs, truth[1])[0]
    stage.outcome.measures["plain_gradient_rounding"] = own
    for layout, gradients in ours.items():
        excess = plain.worst_gradient(gradients, truth[1])[0] - own
        stage.measured(f"{layout}_gradient_excess", max(0.0, excess), plain.GRADIENT_SHARE)


def _num_shared(rows: tuple[TokenisedExample, ...]) -> int:
    """Tokens that all rows begin with and none of them learns."""
    same = list(zip(*(row.input_ids for row in rows), strict=False))
    shared = next((place for place, ids in enumerate(same) if len(set(ids)) > 1), len(same))
    return min(shared, *(row.loss_mask.index(1) for row in rows))


def _ours(
    model: TrainableModel, rows: tuple[TokenisedExample, ...], prefix_lengths: tuple[int, ...]
) -> tuple[float, dict[str, Tensor]]:
    from luthier.ml.training.model import collate

    model.module.zero_grad()
    batch = collate(rows, model.pad_id, model.device, prefix_lengths=prefix_lengths)
    total = model.loss_sum(batch)[0] / batch.num_trained_tokens
    total.backward()
    found = {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}
    return float(total.detach()), found
