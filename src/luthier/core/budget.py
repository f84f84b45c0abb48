"""What a run may cost at most, what it has cost so far, and what it will have cost at its end."""

from __future__ import annotations

from luthier.core.cost import Estimate
from luthier.core.frozen_model import FrozenModel


class FirstActions(FrozenModel):
    """What the first of each action is expected to take, in seconds, before one has been measured.

    Attributes:
        step_seconds: a training step of mean length.
        step_tokens: tokens of that mean step.
        validation_seconds: one pass over the validation rows.
        checkpoint_seconds: writing one checkpoint.
        loading_seconds: reading the base model into memory.
        reference_seconds: what an objective computes before the first step.
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
        hours: most hours.
        usd: most US dollars.
        tokens: most tokens of training steps, without padding.
        energy_kwh: most energy.
        device: name of the device that the rates are of.
        usd_per_hour: price of all devices of the run together; None where it is unknown.
        price_source: where the price comes from, or why there is none.
        watts: power of all devices of the run together; None where it is unknown.
        watts_source: where the power comes from, or why there is none.
        first: what the first actions are expected to take.
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
        seconds: of work in all processes.
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
        hours: of work until now.
        tokens: of training steps until now, without padding.
        usd: cost until now; None where no price is known.
        energy_kwh: energy until now; None where no power is known.
        interrupted_hours: the part of `hours` that was lost when processes were killed.
        final_hours: hours once all steps are done.
        final_usd: cost once all steps are done; None where no price is known.
        final_energy_kwh: energy once all steps are done; None where no power is known.
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
