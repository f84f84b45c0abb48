"""The loss of replayed rows apart from that of the task's rows, as two more sums of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from luthier.core.events import PLAIN_LOSS, REPLAY_LOSS, TASK_LOSS
from luthier.ml.training.objective_protocol import Losses, Unit

REPLAYED_SUM: Final = "replayed_loss_sum"
REPLAYED_WEIGHT: Final = "replayed_weight"


def with_source_loss(losses: Losses, units: Sequence[Unit], weight: float) -> Losses:
    """The same losses, with the contribution of replayed rows as two more summed measures.

    A micro-batch contains either replayed rows or rows of the task.

    Args:
        losses: of the micro-batch.
        units: of the micro-batch.
        weight: of these units.
    """
    is_replayed = float(units[0][0].is_replayed)
    plain = losses.measures.get(PLAIN_LOSS, losses.total).detach()
    more = {REPLAYED_SUM: plain * is_replayed, REPLAYED_WEIGHT: plain.new_tensor(weight * is_replayed)}
    return replace(losses, measures={**losses.measures, **more})


def split_loss_by_source(measures: Mapping[str, float], loss: float) -> dict[str, float]:
    """The measures of a step, with the two sums turned into the mean losses of the task's rows and of replayed rows.

    Both without what regularisation adds.

    Args:
        measures: means over the step, with the two sums of `with_source_loss`.
        loss: the mean over all.
    """
    found = dict(measures)
    replayed, share = found.pop(REPLAYED_SUM), found.pop(REPLAYED_WEIGHT)
    whole = found.get(PLAIN_LOSS, loss)
    if share > 0:
        found[REPLAY_LOSS] = replayed / share
    if share < 1:
        found[TASK_LOSS] = (whole - replayed) / (1 - share)
    return found
