"""The loss of replayed rows apart from that of the task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from luthier.core.events import PLAIN_LOSS, REPLAY_LOSS, TASK_LOSS
from luthier.ml.training.objective_protocol import Losses, Unit

_SUM: Final = "replayed_loss_sum"
_WEIGHT: Final = "replayed_weight"


def with_source_loss(losses: Losses, units: Sequence[Unit], weight: float) -> Losses:
    """The same losses, with the share in them of replayed rows as two more measures, which add up as the others do.

    A micro-batch holds replayed rows or rows of the task, never both.

    Args:
        weight: of these units.
    """
    is_replayed = float(units[0][0].is_replayed)
    plain = losses.measures.get(PLAIN_LOSS, losses.total).detach()
    more = {_SUM: plain * is_replayed, _WEIGHT: plain.new_tensor(weight * is_replayed)}
    return replace(losses, measures={**losses.measures, **more})


def split_loss_by_source(measures: Mapping[str, float], loss: float) -> dict[str, float]:
    """The measures of a step, the two shares turned into the mean loss of the task's rows and of replayed ones.

    Both without what regularisation adds.

    Args:
        loss: the mean over all.
    """
    found = dict(measures)
    replayed, share = found.pop(_SUM), found.pop(_WEIGHT)
    whole = found.get(PLAIN_LOSS, loss)
    if share > 0:
        found[REPLAY_LOSS] = replayed / share
    if share < 1:
        found[TASK_LOSS] = (whole - replayed) / (1 - share)
    return found
