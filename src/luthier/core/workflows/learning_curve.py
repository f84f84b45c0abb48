"""How the loss falls with more rows, and what more of them would buy."""

from __future__ import annotations

from typing import Any, Literal

from luthier.core.estimate import Estimate
from luthier.core.frozen_model import FrozenModel


class CurvePoint(FrozenModel):
    """One run on a share of the training rows.

    Attributes:
        part: the share of the rows, [from, to).
        num_rows: rows that were trained on.
        loss: best validation loss in nats a trained token.
        run_id: the run.
        hours: of that run.
    """

    part: tuple[float, float]
    num_rows: int
    loss: float
    run_id: str = ""
    hours: float = 0.0


class Gain(FrozenModel):
    """What more rows are expected to bring.

    Attributes:
        more_rows: rows in addition to today's.
        loss: the validation loss then.
        bought: by how much it is below the loss of today's rows.
    """

    more_rows: int
    loss: Estimate
    bought: Estimate


class CurveFit(FrozenModel):
    """L(n) = floor + scale * n ** -exponent, fitted to the points (Hestness et al., 2017, arXiv:1712.00409).

    Attributes:
        word: "useful", or why the fit says nothing: "flat" (no fall that the noise lets through), "rising", "unclear"
            (the interval of what twice the rows would buy is too wide to act on).
        words: the finding as a sentence.
        floor: the loss with any number of rows, in nats.
        scale: the factor of the power.
        exponent: how fast the loss falls.
        noise: standard deviation of one point, in nats.
        num_rows: rows that there are today.
        gains: what more rows are expected to bring.
        enough_rows: where twice the rows buy less than 1% of the loss; None where that is beyond a thousand times.
    """

    word: Literal["useful", "flat", "rising", "unclear"]
    words: str
    floor: Estimate
    scale: float
    exponent: Estimate
    noise: float
    num_rows: int
    gains: tuple[Gain, ...]
    enough_rows: int | None


class LearningCurve(FrozenModel):
    """The points that were measured, the fit where there are enough, what was spent, and how to continue where not.

    Attributes:
        points: the runs.
        fit: the curve; None with too few points.
        planned_hours: predicted for all runs together.
        spent_hours: of all runs, earlier ones too.
        cap_hours: the budget.
        num_validation_rows: rows that losses are measured on.
        paused_because: why it ended early; None where it did not.
        notes: what was taken as given, or left out.
    """

    points: tuple[CurvePoint, ...]
    fit: CurveFit | None
    planned_hours: Estimate
    spent_hours: float
    cap_hours: float | None
    num_validation_rows: int
    paused_because: str | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """`learning_curve` of `luthier plan --learning-curve --json`."""
        return self.model_dump(mode="json")
