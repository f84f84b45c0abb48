"""What a run may cost at most, what it has cost so far, and what it will have cost at its end."""

from __future__ import annotations

from luthier.core.cost import Estimate
from luthier.core.frozen_model import FrozenModel


class FirstActions(FrozenModel):
    """What the first of each action is expected to take, in seconds, before one has been measured.

    Attributes:
        step_tokens: tokens of the mean step, which `step_seconds` is for.
        reference_seconds: of what an objective computes before the first step.
        judging: seconds of judging the held-out rows; None where nothing is judged, and in plans of before it was
            foreseen.
    """

    step_seconds: Estimate
    step_tokens: float
    validation_seconds: float
    checkpoint_seconds: float
    loading_seconds: float
    reference_seconds: float = 0.0
    judging: Estimate | None = None


class BudgetPlan(FrozenModel):
    """The caps of a run (None: no cap), and the rates by which its time becomes money and energy.

    A cap is kept at the upper end of its rate.

    Attributes:
        tokens: of training steps, without padding.
        usd_per_hour, watts: of all devices of the run together; None where nobody knows, and then `price_source` or
            `watts_source` says why.
    """

    hours: float | None = None
    usd: float | None = None
    tokens: int | None = None
    energy_kwh: float | None = None
    device: str
    usd_per_hour: Estimate | None
    price_source: str
    watts: Estimate | None
    watts_source: str
    first: FirstActions


class Spent(FrozenModel):
    """What a run has taken in all of its processes, work that a kill threw away included.

    Attributes:
        tokens: of training steps, without padding.
        interrupted_seconds: the part of `seconds` that was under way when a process was killed; nobody could measure
            it, so it is what that action was expected to take.
    """

    seconds: float = 0.0
    tokens: int = 0
    interrupted_seconds: float = 0.0


class Bill(FrozenModel):
    """What a run has cost so far, and what it is expected to have cost once all of its steps are done.

    The `final_` figures hold for a run that goes to its last step and is judged: early stopping makes it cheaper. A cap
    may stop it before.

    Attributes:
        usd, energy_kwh: None where no price or power is known.
    """

    hours: float
    tokens: int
    usd: Estimate | None
    energy_kwh: Estimate | None
    interrupted_hours: float
    final_hours: Estimate
    final_usd: Estimate | None
    final_energy_kwh: Estimate | None

    @property
    def left_seconds(self) -> float:
        """Seconds that are still to come, as expected."""
        return max(0.0, (self.final_hours.value - self.hours) * 3600)
