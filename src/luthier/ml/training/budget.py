"""The cap: may the next action begin, what is spent so far, and what will the whole run cost?

A run ends at most one step over its cap, because nothing begins that what is left does not cover as expected; the
checkpoint that keeps a step is part of that step's price. All time is counted that is paid: reading rows, loading the
model, steps, validations, checkpoints, judging, and what a kill threw away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.cost import Estimate
from luthier.core.plan import Plan
from luthier.core.run import Bill, BudgetPlan, Spent, StopReason
from luthier.ml.charts import figures
from luthier.ml.training.ledger import Action, Entry, Ledger

LimitName = Literal["hours", "usd", "tokens", "energy_kwh"]

_WORDS: Final[dict[LimitName, str]] = {"hours": "h", "usd": "USD", "tokens": "tokens", "energy_kwh": "kWh"}
_NEXT: Final[dict[Action, str]] = {"step": "the next step and its checkpoint", "validation": "the next validation"}
# A validation is a forward pass over its rows: at most half of what a step takes for as many tokens.
_FORWARD_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Limit:
    """One cap, and how time and tokens use it up.

    Attributes:
        cap: in the limit's own unit: hours, USD, tokens or kWh.
        per_second, per_token: what a second and a token use of it, in that unit.
    """

    name: LimitName
    cap: float
    per_second: float
    per_token: float = 0.0

    def used(self, seconds: float, tokens: float) -> float:
        """What that takes, in the cap's own unit."""
        return seconds * self.per_second + tokens * self.per_token

    def left(self, spent: Spent) -> float:
        """What is left of the cap, in its own unit; below zero once it is overrun."""
        return self.cap - self.used(spent.seconds, spent.tokens)


def limits(budget: BudgetPlan | None) -> tuple[Limit, ...]:
    """The caps of a budget, money and energy at the upper end of their rates; none where there is no budget.

    A cap on money without a price, or on energy without watts, cannot be kept: ml/planning/budget.py refuses it.
    """
    if budget is None:
        return ()
    found = []
    if budget.hours is not None:
        found.append(Limit("hours", budget.hours, 1 / 3600))
    if budget.usd is not None and budget.usd_per_hour is not None:
        found.append(Limit("usd", budget.usd, budget.usd_per_hour.high / 3600))
    if budget.energy_kwh is not None and budget.watts is not None:
        found.append(Limit("energy_kwh", budget.energy_kwh, budget.watts.high / 3.6e6))
    if budget.tokens is not None:
        found.append(Limit("tokens", float(budget.tokens), 0.0, 1.0))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an action may not begin.

    Attributes:
        limit: the cap that it would exceed.
        words: the reason as text.
    """

    limit: LimitName
    words: StopReason


def refusal(budget: BudgetPlan | None, spent: Spent, action: Action, seconds: float, tokens: int) -> Refusal | None:
    """Why an action that should take that much may not begin; None where it may."""
    for limit in limits(budget):
        needed = limit.used(seconds, tokens)
        # An action that was never measured needs 0: it must not pass a cap that is used up.
        if limit.left(spent) >= needed and limit.left(spent) > 0:
            continue
        unit, used = _WORDS[limit.name], limit.cap - limit.left(spent)
        need = f"; {_NEXT.get(action, action)} should take {needed:.3g}" if needed else ""
        words = f"budget of {_amount(limit.cap)} {unit}: {_amount(used)} {unit} spent{need}"
        return Refusal(limit.name, StopReason(words, "budget"))
    return None


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Remaining:
    """What a run still has before it.

    Attributes:
        num_steps, num_tokens: of the steps to come.
        num_validations: to come.
        num_checkpoints: those of every few steps; each new best is saved besides.
        is_judged: whether its held-out rows are still to be judged.
    """

    num_steps: int
    num_tokens: float
    num_validations: int
    num_checkpoints: int
    is_judged: bool = False


def remaining(
    plan: Plan, step: int, num_tokens: int, *, has_just_ended: bool = False, was_judged: bool = False
) -> Remaining:
    """What is left after `step` steps with `num_tokens` tokens, if the run goes to its last step.

    Args:
        has_just_ended: the validation and the checkpoint after this very step are still to come.
        was_judged: judging is done, or will not be.
    """
    p = plan.training
    rows = plan.data.train
    whole = plan.objective.max_step_tokens(
        rows.num_tokens, rows.num_tokens - rows.num_trained_tokens, rows.num_examples
    )
    mean, left = whole / p.num_steps_per_epoch, p.num_steps - step
    # of drawn answers the most is foreseen, and fewer tokens are done: they say nothing about what remains
    done = mean * step if plan.objective.draws else num_tokens
    every, after = p.validate_every_steps, step - 1 if has_just_ended else step
    validations = p.num_steps // every - after // every if every else 0
    if every and p.num_steps % every and after < p.num_steps:
        validations += 1  # the last step is always validated
    return Remaining(
        num_steps=left,
        # an epoch's tokens are known to the last one, a step's are not: short ones now mean long ones later
        num_tokens=max(mean * p.num_steps - done, 0.25 * mean * left),
        num_validations=validations,
        num_checkpoints=p.num_steps // p.checkpoint_every_steps - after // p.checkpoint_every_steps,
        is_judged=plan.data.held_out is not None and not was_judged,
    )


def bill_summary(bill: Bill) -> str:
    """The bill beside a progress bar: time and money so far, and the totals expected at the end."""
    now, end = (figures.duration(hours * 3600) for hours in (bill.hours, bill.final_hours.value))
    text = f"{now} of about {end}".replace(figures.NO_BREAK, " ")
    if bill.usd is not None and bill.final_usd is not None:
        text += f", {bill.usd.value:.2g} of {bill.final_usd.value:.2g} USD"
    return text


class Meter:
    """Measures what a run spends: all time from one `begin` to the next counts for the action of the first.

    Args:
        seconds_before: spent in this process before there was a ledger.
        clock: seconds that only grow.

    Attributes:
        refused_by: the cap that something was refused for; None as long as there was none.
    """

    def __init__(
        self,
        budget: BudgetPlan | None = None,
        ledger: Ledger | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        seconds_before: float = 0.0,
    ) -> None:
        self.budget, self._clock = budget, clock
        self.refused_by: LimitName | None = None
        self._ledger = ledger or Ledger(None)
        last = self._ledger.last()
        self._settled, self._pace = last.settled(), last.pace
        self._since = clock() - seconds_before
        self._doing: tuple[Action, int, float] | None = ("preparing", 0, self._since) if seconds_before else None

    @property
    def spent(self) -> Spent:
        """What is spent up to this moment; a step's tokens are as soon as it begins."""
        action, tokens, _ = self._doing or (None, 0, 0.0)
        more = {
            "seconds": self._settled.seconds + self._clock() - self._since,
            "tokens": self._settled.tokens + (tokens if action == "step" else 0),
        }
        return self._settled.model_copy(update=more)

    def begin(self, action: Action, tokens: int = 0) -> None:
        """Settle what went before, and note that this begins.

        Raises:
            StorageFullError: the disk has no room for the note.
        """
        self._settle()
        expected = self.expected_seconds(action, tokens)
        self._doing = (action, tokens, self._since)
        self._note(action, expected, tokens)

    def refuses(self, action: Action, tokens: int = 0, *, num_checkpoints: int = 0) -> str | None:
        """Why this may not begin now, or None.

        Args:
            num_checkpoints: those that must follow, so that nothing is lost.
        """
        seconds = self.expected_seconds(action, tokens) + num_checkpoints * self.expected_seconds("checkpoint", 0)
        return self._ask(action, seconds, tokens if action == "step" else 0)

    def expected_seconds(self, action: Action, tokens: int) -> float:
        """What an action should take, from those before it; from the plan where there was none.

        A step's is a standard deviation above the mean, so that most end before their cap.
        """
        pace, first = self._pace, self.budget.first if self.budget else None
        if action == "step" and pace.num_steps:
            return pace.seconds_for(tokens, 1).value * (1 + pace.spread)
        if action in pace.others:
            return pace.others[action]
        if first is None:
            return 0.0
        if action == "step":
            return first.step_seconds.value * tokens / first.step_tokens
        if action == "validation" and pace.num_steps and tokens:
            return pace.seconds_for(tokens, 1).value * _FORWARD_SHARE
        known: dict[Action, float] = {
            "validation": first.validation_seconds,
            "checkpoint": first.checkpoint_seconds,
            "saving": first.checkpoint_seconds,
            "loading": first.loading_seconds,
            "reference": first.reference_seconds,
        }
        return known.get(action, 0.0)

    def seconds_left(self) -> float:
        """What is left of the action under way, as expected; 0 where it should be done, or nothing is under way."""
        if self._doing is None:
            return 0.0
        action, tokens, began = self._doing
        return max(0.0, self.expected_seconds(action, tokens) - (self._clock() - began))

    def refuses_to_go_on(self, *, training_is_done: bool) -> str | None:
        """Why a new process would be useless: the cap would not even cover loading the model and one action."""
        first = self.budget.first if self.budget else None
        action: Action = "judging" if training_is_done else "step"
        tokens = 0 if training_is_done or first is None else round(first.step_tokens)
        seconds = sum(self.expected_seconds(name, 0) for name in ("preparing", "loading"))
        seconds += self.expected_seconds(action, tokens)
        seconds += 0.0 if training_is_done else self.expected_seconds("checkpoint", 0)
        return self._ask(action, seconds, tokens)

    def overrun(self) -> str | None:
        """Which cap is used up by now, as a sentence; None where all have something left."""
        return self._ask("judging", 0.0, 0)

    def at_least(self, seconds: float, tokens: int) -> bool:
        """Make sure that what the surviving history took is counted; False where the ledger had lost some of it."""
        enough = self._settled.seconds >= 0.999 * seconds and self._settled.tokens >= tokens
        held = enough or not self._ledger.is_persistent
        more = {
            "seconds": max(self._settled.seconds, seconds),
            "tokens": max(self._settled.tokens, tokens),
        }
        self._settled = self._settled.model_copy(update=more)
        return held

    def bill(self, ahead: Remaining) -> Bill:
        """What is spent so far, and the total expected at the end of the run, with its interval."""
        spent = self.spent
        hours = spent.seconds / 3600
        final = Estimate(value=hours, low=hours, high=hours).plus(self._ahead(ahead).times(1 / 3600))
        price = self.budget.usd_per_hour if self.budget else None
        kilowatts = self.budget.watts.times(1e-3) if self.budget and self.budget.watts else None
        return Bill(
            hours=hours,
            tokens=spent.tokens,
            usd=price.times(hours) if price else None,
            energy_kwh=kilowatts.times(hours) if kilowatts else None,
            interrupted_hours=spent.interrupted_seconds / 3600,
            final_hours=final,
            final_usd=final.by(price) if price else None,
            final_energy_kwh=final.by(kilowatts) if kilowatts else None,
        )

    def close(self) -> None:
        """Settle and close the ledger. An action cut short is counted, but does not change the throughput."""
        action, tokens, _ = self._doing or (None, 0, 0.0)
        # Cleared before settling: the time is counted, but must not enter the throughput of whole actions.
        self._doing = None
        self._settle()
        if action == "step":
            self._settled = self._settled.model_copy(update={"tokens": self._settled.tokens + tokens})
        self._note(None, 0.0, 0)
        self._ledger.close()

    def take_up(self) -> None:
        """Continue after `close` from what another process has written to the ledger since."""
        last = self._ledger.last()
        self._settled, self._pace, self._since = last.settled(), last.pace, self._clock()

    def _ask(self, action: Action, seconds: float, tokens: int) -> str | None:
        refused = refusal(self.budget, self.spent, action, seconds, tokens)
        if refused is None:
            return None
        self.refused_by = refused.limit
        return refused.words

    def _ahead(self, ahead: Remaining) -> Estimate:
        """Seconds of what is ahead. Of the validations some will be a new best and save a checkpoint: half, or none."""
        first = self.budget.first if self.budget else None
        if self._pace.num_steps:
            steps = self._pace.seconds_for(ahead.num_tokens, ahead.num_steps)
        elif first is not None:
            steps = first.step_seconds.times(ahead.num_tokens / first.step_tokens)
        else:
            steps = Estimate(value=0.0, low=0.0, high=0.0)
        checkpoint = self.expected_seconds("checkpoint", 0)
        whole = ahead.num_validations * self.expected_seconds("validation", 0) + ahead.num_checkpoints * checkpoint
        best = ahead.num_validations * checkpoint
        ahead_of = steps.plus(Estimate(value=whole + best / 2, low=whole, high=whole + best))
        if not ahead.is_judged or first is None or first.judging is None:
            return ahead_of
        # what judging took before it was cut short is the least that it takes
        least = self._pace.others.get("judging", 0.0)
        foreseen = (max(least, end) for end in (first.judging.value, first.judging.low, first.judging.high))
        return ahead_of.plus(Estimate(**dict(zip(("value", "low", "high"), foreseen, strict=True))))

    def _settle(self) -> None:
        """Count the time since the last call, and learn from it what such an action takes."""
        now = self._clock()
        took, self._since = now - self._since, now
        more: dict[str, float] = {"seconds": self._settled.seconds + took}
        if self._doing is not None:
            action, tokens, began = self._doing
            if action == "step":
                more["tokens"] = self._settled.tokens + tokens
                self._pace = self._pace.after_step(tokens, now - began)
            else:
                self._pace = self._pace.after(action, now - began)
            if action == "checkpoint":
                # What a checkpoint has cost becomes as durable as the checkpoint itself.
                self._ledger.sync()
        self._settled = self._settled.model_copy(update=more)

    def _note(self, action: Action | None, expected_seconds: float, tokens: int) -> None:
        self._ledger.append(
            Entry(
                seconds=self._settled.seconds,
                tokens=self._settled.tokens,
                interrupted_seconds=self._settled.interrupted_seconds,
                doing=action,
                expected_seconds=expected_seconds,
                expected_tokens=tokens if action == "step" else 0,
                pace=self._pace,
            )
        )
