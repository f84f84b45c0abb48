"""From the events of a run to the lines that are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.events import PLAIN_LOSS, TASK_LOSS, Event, StepDone, ValidationDone, comparable_loss

MAX_POINTS: Final = 400
_SMOOTH_SHARE: Final = 0.05

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curves:
    """What the curves show, each against the optimizer step.

    Attributes:
        steps: last step of each point.
        loss: training loss.
        learning_rate: mean of a point.
        gradient_norm: mean of a point.
        tokens_per_second: of a whole point.
        steps_a_point: how many steps a point is the mean of.
        validation_steps: steps that were validated.
        validation_loss: one value a validated step.
        best_step: step of the best validation; None where there was none.
        is_plain: the training loss is shown without what label smoothing adds, as the validation loss is.
        is_of_task: it is that of the task's rows, without replayed ones.
    """

    steps: Values
    loss: Values
    learning_rate: Values
    gradient_norm: Values
    tokens_per_second: Values
    steps_a_point: int
    validation_steps: Values
    validation_loss: Values
    best_step: int | None
    is_plain: bool = False
    is_of_task: bool = False

    @property
    def num_steps(self) -> int:
        """The last step there is; 0 where none was finished."""
        return int(self.steps[-1]) if len(self.steps) else 0


def curves(events: Sequence[Event], max_points: int = MAX_POINTS) -> Curves:
    """The lines of a run. Of a step that was trained twice (a run that was resumed) the later one counts."""
    steps = sorted({e.step: e for e in events if isinstance(e, StepDone)}.values(), key=lambda e: e.step)
    validations = sorted({e.step: e for e in events if isinstance(e, ValidationDone)}.values(), key=lambda e: e.step)
    per_point = max(1, -(-len(steps) // max_points))
    tokens = _array([e.num_tokens for e in steps])
    seconds = _array([e.seconds for e in steps])
    best = [e.step for e in validations if e.is_best]
    starts = np.arange(0, len(steps), per_point)
    return Curves(
        # A point is drawn at the last of its steps; the last point may have fewer.
        steps=_array([e.step for e in steps])[np.minimum(starts + per_point - 1, len(steps) - 1)],
        loss=_means(_array([comparable_loss(e) for e in steps]), per_point),
        is_plain=any(PLAIN_LOSS in e.measures for e in steps),
        is_of_task=any(TASK_LOSS in e.measures for e in steps),
        learning_rate=_means(_array([e.learning_rate for e in steps]), per_point),
        gradient_norm=_means(_array([e.gradient_norm for e in steps]), per_point),
        # Tokens over seconds of all steps of a point: a mean of rates would give short steps too much weight.
        tokens_per_second=_sums(tokens, per_point) / np.maximum(_sums(seconds, per_point), 1e-9),
        steps_a_point=per_point,
        validation_steps=_array([e.step for e in validations]),
        validation_loss=_array([e.loss for e in validations]),
        best_step=best[-1] if best else None,
    )


def smooth_window(num_points: int) -> int:
    """How many points the thick line averages: a twentieth of them, odd; 1 (no smoothing) for short runs."""
    # Odd, so that the window has a middle.
    return 2 * int(num_points * _SMOOTH_SHARE / 2) + 1


def smooth(values: Values, window: int) -> Values:
    """The mean of the `window` points around each one; fewer at both ends, where there are no more."""
    reach = window // 2
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])


def _array(values: Sequence[float]) -> Values:
    return np.array(values, dtype=np.float64)


def _sums(values: Values, per_point: int) -> Values:
    return np.add.reduceat(values, np.arange(0, len(values), per_point)) if len(values) else values


def _means(values: Values, per_point: int) -> Values:
    return _sums(values, per_point) / _sums(np.ones_like(values), per_point) if len(values) else values
