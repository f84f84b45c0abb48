"""The budget cap: whether the next action may begin, the spend so far, and the expected cost of the whole run.

A run exceeds its cap by at most one step: an action begins only if its expected cost fits into the remaining budget,
and the price of a step includes the checkpoint that saves it. All paid time counts: reading rows, loading the model,
steps, validations, checkpoints, judging, and work lost to a kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.estimate import Estimate
from luthier.core.plan import Plan
from luthier.core.run import Bill, BudgetPlan, JudgeBill, Spent, StopReason
from luthier.ml.charts import figures
from luthier.ml.training.ledger import Action, Entry, Ledger

LimitName = Literal["hours", "usd", "tokens", "energy_kwh"]

_WORDS: Final[dict[LimitName, str]] = {"hours": "h", "usd": "USD", "tokens": "tokens", "energy_kwh": "kWh"}
_NEXT: Final[dict[Action, str]] = {"step": "the next step and its checkpoint", "validation": "the next validation"}
# A validation is a forward pass over its rows: at most half of what a step takes for as many tokens.
_FORWARD_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Limit:
    """One cap and the rates at which time and tokens consume it.

    Attributes:
        cap: in the limit's own unit: hours, USD, tokens or kWh.
        per_second, per_token: consumption per second and per token, in that unit.
        per_usd: consumption per US dollar that is paid to judges behind servers.
    """

    name: LimitName
    cap: float
    per_second: float
    per_token: float = 0.0
    per_usd: float = 0.0

    def used(self, seconds: float, tokens: float, judge_usd: float = 0.0) -> float:
        """The cost of these seconds, tokens and replies of judges, in the cap's unit."""
        return seconds * self.per_second + tokens * self.per_token + judge_usd * self.per_usd

    def left(self, spent: Spent) -> float:
        """The remaining budget, in the cap's unit; negative once the cap is exceeded."""
        return self.cap - self.used(spent.seconds, spent.tokens, spent.judge_usd)


def limits(budget: BudgetPlan | None) -> tuple[Limit, ...]:
    """The caps of a budget, with money and energy at the upper end of their rates; empty without a budget.

    A cap on money needs a price and a cap on energy needs watts; ml/planning/budget.py rejects caps without them.
    """
    if budget is None:
        return ()
    found = []
    if budget.hours is not None:
        found.append(Limit("hours", budget.hours, 1 / 3600))
    if budget.usd is not None and budget.usd_per_hour is not None:
        # The upper end: a cap is a promise, and has to hold where the price is the highest that was stated.
        found.append(Limit("usd", budget.usd, budget.usd_per_hour.high / 3600, per_usd=1.0))
    if budget.energy_kwh is not None and budget.watts is not None:
        found.append(Limit("energy_kwh", budget.energy_kwh, budget.watts.high / 3.6e6))
    if budget.tokens is not None:
        found.append(Limit("tokens", float(budget.tokens), 0.0, 1.0))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why an action may not begin.

    Attributes:
        limit: the cap that it would exceed.
        words: the reason, as text.
    """

    limit: LimitName
    words: StopReason


def refusal(
    budget: BudgetPlan | None, spent: Spent, action: Action, seconds: float, tokens: int, judge_usd: float = 0.0
) -> Refusal | None:
    """Why an action of this expected cost may not begin; None if it may.

    Args:
        budget: the caps of the run; None for none.
        spent: what the run has spent so far.
        action: what is to begin.
        seconds: its expected duration.
        tokens: tokens that it will count.
        judge_usd: what judges behind servers are expected to cost for it.
    """
    for limit in limits(budget):
        needed = limit.used(seconds, tokens, judge_usd)
        # An action without measurements needs 0; it must still not begin under an exhausted cap.
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
    """The remaining work of a run.

    Attributes:
        num_steps, num_tokens: of the remaining steps.
        num_validations: remaining validations.
        num_checkpoints: remaining periodic checkpoints; each new best is saved in addition.
        is_judged: whether its held-out rows remain to be evaluated.
    """

    num_steps: int
    num_tokens: float
    num_validations: int
    num_checkpoints: int
    is_judged: bool = False


def remaining(
    plan: Plan, step: int, num_tokens: int, *, has_just_ended: bool = False, was_judged: bool = False
) -> Remaining:
    """The remaining work after `step` steps with `num_tokens` tokens, if the run reaches its last step.

    Args:
        plan: of the run.
        step: optimizer steps that are done.
        num_tokens: tokens of these steps, without padding.
        has_just_ended: whether the validation and the checkpoint after this step are still outstanding.
        was_judged: whether judging is done or will be skipped.
    """
    p = plan.training
    mean, left = mean_step_tokens(plan), p.num_steps - step
    # sampled answers are planned at their maximum length, so their actual tokens say nothing about the remaining ones
    done = mean * step if plan.objective.draws else num_tokens
    # Right after a step its own validation is still to come, so it counts as one of those that remain.
    every, after = p.validate_every_steps, step - 1 if has_just_ended else step
    validations = p.num_steps // every - after // every if every else 0
    if every and p.num_steps % every and after < p.num_steps:
        validations += 1  # the last step is always validated
    return Remaining(
        num_steps=left,
        # an epoch's token count is known exactly, a step's is not: short steps now mean long ones later
        num_tokens=max(mean * p.num_steps - done, 0.25 * mean * left),
        num_validations=validations,
        num_checkpoints=p.num_steps // p.checkpoint_every_steps - after // p.checkpoint_every_steps,
        is_judged=plan.data.held_out is not None and not was_judged,
    )


def mean_step_tokens(plan: Plan) -> float:
    """Tokens that a mean step computes, without padding: of all its updates, of answers at their maximum length."""
    rows = plan.data.train
    whole = plan.objective.max_step_tokens(
        rows.num_tokens, rows.num_tokens - rows.num_trained_tokens, rows.num_examples
    )
    return whole / plan.training.num_steps_per_epoch + _replayed_tokens(plan)


def _replayed_tokens(plan: Plan) -> float:
    """Tokens of the general rows that a mean step replays; an epoch is one of the task's rows alone."""
    replay = plan.data.replay
    if replay is None or replay.rows is None:
        return 0.0
    return replay.num_per_step * replay.rows.num_tokens / replay.rows.num_examples


def bill_summary(bill: Bill) -> str:
    """The cost line of a progress bar: time and money so far, and the expected totals."""
    now, end = (figures.duration(hours * 3600) for hours in (bill.hours, bill.final_hours.value))
    text = f"{now} of about {end}".replace(figures.NO_BREAK, " ")
    if bill.usd is not None and bill.final_usd is not None:
        text += f", {bill.usd.value:.2g} of {bill.final_usd.value:.2g} USD"
    return text


class Meter:
    """Meters the spend of a run: the time from one `begin` to the next is charged to the action of the first.

    Args:
        budget: the caps, with the expected cost of actions that were never measured; None caps nothing.
        ledger: where the spend is written; None writes nothing to disk.
        clock: monotonic clock, in seconds.
        seconds_before: seconds spent in this process before the ledger was opened.

    Attributes:
        refused_by: the cap because of which an action was refused; None if none was.
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
        self._judges_paid: dict[Action, list[float]] = {}
        # Imports and the reading of rows come before the ledger: they are charged to `preparing`.
        self._since = clock() - seconds_before
        self._doing: tuple[Action, int, float] | None = ("preparing", 0, self._since) if seconds_before else None

    @property
    def spent(self) -> Spent:
        """The spend up to now; the tokens of a step count as soon as it begins."""
        action, tokens, _ = self._doing or (None, 0, 0.0)
        more = {
            "seconds": self._settled.seconds + self._clock() - self._since,
            "tokens": self._settled.tokens + (tokens if action == "step" else 0),
        }
        return self._ledger.judged(self._settled.model_copy(update=more))

    def begin(self, action: Action, tokens: int = 0) -> None:
        """Settle the previous action and record that this one begins.

        Raises:
            StorageFullError: the disk has no room for the entry.
        """
        self._settle()
        expected = self.expected_seconds(action, tokens)
        self._doing = (action, tokens, self._since)
        self._note(action, expected, tokens)

    def refuses(self, action: Action, tokens: int = 0, *, num_checkpoints: int = 0) -> str | None:
        """Why this action may not begin now, or None.

        Args:
            action: that is to begin.
            tokens: of it: those of a step count against a cap on tokens.
            num_checkpoints: checkpoints that must follow so that no work is lost.
        """
        # A step that leaves no room for its checkpoint would be work that is lost.
        seconds = self.expected_seconds(action, tokens) + num_checkpoints * self.expected_seconds("checkpoint", 0)
        return self._ask(action, seconds, tokens if action == "step" else 0)

    def expected_seconds(self, action: Action, tokens: int) -> float:
        """The expected cost of an action, from earlier ones of its kind, or from the plan if there were none.

        For a step it is one standard deviation above the mean, so that most runs stay within their cap.
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
            # Before the first validation: its passes have no backward part, which is a known share of a step.
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
        """The expected remainder of the current action; 0 if it is overdue or none is running."""
        if self._doing is None:
            return 0.0
        action, tokens, began = self._doing
        return max(0.0, self.expected_seconds(action, tokens) - (self._clock() - began))

    def refuses_to_go_on(self, *, training_is_done: bool) -> str | None:
        """Why starting another process is pointless: the cap does not cover loading the model and one action."""
        first = self.budget.first if self.budget else None
        action: Action = "judging" if training_is_done else "step"
        tokens = 0 if training_is_done or first is None else round(first.step_tokens)
        seconds = sum(self.expected_seconds(name, 0) for name in ("preparing", "loading"))
        seconds += self.expected_seconds(action, tokens)
        seconds += 0.0 if training_is_done else self.expected_seconds("checkpoint", 0)
        return self._ask(action, seconds, tokens)

    def expected_judge_usd(self, action: Action) -> float:
        """What judges behind servers are expected to cost for an action: the most so far, or as planned before."""
        if paid := self._judges_paid.get(action):
            return max(paid)
        planned = self.budget.judges if self.budget else None
        if planned is None or planned.step_usd is None:
            return 0.0
        return {"step": planned.step_usd.value, "validation": planned.validation_usd.value}.get(action, 0.0)

    def overrun(self) -> str | None:
        """Which cap is exhausted, as a sentence; None if none is."""
        return self._ask("judging", 0.0, 0)

    def at_least(self, seconds: float, tokens: int) -> bool:
        """Make sure that the time of the surviving history is counted; False if the ledger had lost part of it."""
        enough = self._settled.seconds >= 0.999 * seconds and self._settled.tokens >= tokens
        held = enough or not self._ledger.is_persistent
        more = {
            "seconds": max(self._settled.seconds, seconds),
            "tokens": max(self._settled.tokens, tokens),
        }
        self._settled = self._settled.model_copy(update=more)
        return held

    def bill(self, ahead: Remaining) -> Bill:
        """The spend so far and the expected total of the run, with its interval."""
        spent = self.spent
        hours = spent.seconds / 3600
        final = Estimate(value=hours, low=hours, high=hours).plus(self._ahead(ahead).times(1 / 3600))
        price = self.budget.usd_per_hour if self.budget else None
        judges, judges_ahead = self._judges(spent, ahead)
        usd, final_usd = (price.times(hours), final.by(price)) if price else (None, None)
        if usd is not None and final_usd is not None and judges is not None and judges.usd is not None:
            paid = Estimate(value=judges.usd, low=judges.usd, high=judges.usd)
            usd, final_usd = usd.plus(paid), final_usd.plus(paid).plus(judges_ahead)
        kilowatts = self.budget.watts.times(1e-3) if self.budget and self.budget.watts else None
        return Bill(
            hours=hours,
            tokens=spent.tokens,
            usd=usd,
            energy_kwh=kilowatts.times(hours) if kilowatts else None,
            interrupted_hours=spent.interrupted_seconds / 3600,
            final_hours=final,
            final_usd=final_usd,
            final_energy_kwh=final.by(kilowatts) if kilowatts else None,
            judges=judges,
        )

    def _judges(self, spent: Spent, ahead: Remaining) -> tuple[JudgeBill | None, Estimate]:
        """What judges behind servers were paid, and what they are expected to cost until the last step."""
        planned, zero = self.budget.judges if self.budget else None, Estimate(value=0.0, low=0.0, high=0.0)
        if planned is None:
            return None, zero
        has_prices = planned.step_usd is not None
        paid = JudgeBill(
            calls=spent.judge_calls,
            prompt_tokens=spent.judge_prompt_tokens,
            new_tokens=spent.judge_new_tokens,
            usd=spent.judge_usd if has_prices else None,
        )
        if planned.step_usd is None:
            return paid, zero
        left = planned.validation_usd.times(ahead.num_validations)
        if not (steps := self._judges_paid.get("step")):
            return paid, left.plus(planned.step_usd.times(ahead.num_steps))
        # Replies of this process are measured; later answers may be longer, or more of them equal.
        mean = sum(steps) / len(steps)
        measured = Estimate(value=mean, low=mean / 2, high=2 * mean)
        return paid, left.plus(measured.times(ahead.num_steps))

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
        """Continue after `close` from the entries that another process has since written to the ledger."""
        last = self._ledger.last()
        self._settled, self._pace, self._since = last.settled(), last.pace, self._clock()

    def _ask(self, action: Action, seconds: float, tokens: int) -> str | None:
        refused = refusal(self.budget, self.spent, action, seconds, tokens, self.expected_judge_usd(action))
        if refused is None:
            return None
        self.refused_by = refused.limit
        return refused.words

    def _ahead(self, ahead: Remaining) -> Estimate:
        """Seconds of the remaining work. Between none and half of the validations save a new best checkpoint."""
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
        # the time of an interrupted judging is a lower bound
        least = self._pace.others.get("judging", 0.0)
        judging = first.judging
        return ahead_of.plus(
            Estimate.of((max(least, judging.value), max(least, judging.low), max(least, judging.high)))
        )

    def _settle(self) -> None:
        """Charge the time since the last call and update the estimate for this kind of action."""
        now = self._clock()
        took, self._since = now - self._since, now
        judged = self._ledger.judged(self._settled)
        paid, self._settled = judged.judge_usd - self._settled.judge_usd, judged
        more: dict[str, float] = {"seconds": self._settled.seconds + took}
        if self._doing is not None:
            action, tokens, began = self._doing
            if paid > 0:  # nothing is paid where a resumed run reads stored replies
                self._judges_paid.setdefault(action, []).append(paid)
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
                **self._settled.model_dump(),
                doing=action,
                expected_seconds=expected_seconds,
                expected_tokens=tokens if action == "step" else 0,
                pace=self._pace,
            )
        )
