"""The cash flows of each way against today's.

    each month   calls x (accuracy - today's) x value of a correct answer  +  serving today - serving  -  upkeep
    value(t)     each month x max(0, t - months until launch)  -  once
    payback      months until launch  +  once / each month

Nothing is discounted, and upkeep is spread evenly: a model that is retrained every six months carries a sixth of a
retraining each month. Every figure is an array: one value a draw, or one alone.

A measured baseline without a language model is fitted on the same rows as the tuned model. It carries the same hours of
people and the same evaluations, at the start and at each retraining; it saves the training, and pays no tokens. The
commonest answer needs none of them. Accuracies of alternatives follow from that of the tuned model and the paired
difference to it, so that the two are compared by the interval of that difference and by nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from luthier.core.results.roi import ALTERNATIVES, Case, Changed, Tuned, Way
from luthier.core.results.roi_result import MeasuredBaseline, MeasuredGains
from luthier.ml.planning.roi import words
from luthier.ml.planning.roi.inputs import (
    ALONE,
    ASSUMED_ALONE,
    BASELINES,
    SHOT_TOKENS,
    TODAY_ACCURACY,
    TUNED_ACCURACY,
    TUNED_OVER_FEW_SHOT,
    TUNED_OVER_TODAY,
    Array,
    Values,
    over_baseline,
)  # fmt: skip

HOURS_A_MONTH: Final = 730.0
TUNED: Final = "tuned"
FEW_SHOT: Final = "few_shot"
ANSWERS: Final = "answers"
_MILLION: Final = 1e6
_SECONDS_AN_HOUR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Flow:
    """One way against today's.

    Attributes:
        once: what is spent, positive.
        monthly: what comes in, costs negative.
    """

    gain: Array
    serving: Array
    once: dict[str, Array]
    monthly: dict[str, Array]
    launch_months: Array

    @property
    def spent(self) -> Array:
        """All that is spent once."""
        return _sum(self.once, self.gain)

    @property
    def per_month(self) -> Array:
        """What a month brings, all costs taken off."""
        return _sum(self.monthly, self.gain)

    def value(self, months: float) -> Array:
        """What has come together after that many months."""
        return self.per_month * np.maximum(0.0, months - self.launch_months) - self.spent

    def payback_months(self) -> Array:
        """When all that was spent has come back; infinite where it never does, 0 where nothing was spent or lost."""
        spent, each = self.spent, self.per_month
        # `where` computes both sides for every draw; the divisions that it discards must not warn.
        with np.errstate(divide="ignore", invalid="ignore"):
            months = np.where(each > 0, self.launch_months + spent / each, np.inf)
        return np.where((spent == 0) & (each >= 0), 0.0, months)


@dataclass(frozen=True, slots=True)
class Economy:
    """A case, with what was measured for it, ready to be computed with any values of its inputs."""

    case: Case
    measured: MeasuredGains | None

    def names(self) -> list[str]:
        """All alternatives that can be priced: plain ways, then baselines."""
        return [*self.alternatives(), *self.baselines()]

    def baselines(self) -> dict[str, MeasuredBaseline]:
        """The measured baselines without a language model, by name."""
        return {one.name: one for one in self.measured.baselines} if self.measured is not None else {}

    def phrase(self, name: str) -> str:
        """What a sentence calls a way."""
        baseline = self.baselines().get(name)
        return words.MIDDLE[name] if baseline is None else baseline.title

    def alternatives(self) -> dict[str, Changed]:
        """The plain ways that can be priced, by name."""
        found: dict[str, Changed] = {name: way for name in ALTERNATIVES if (way := self._plain(name))}
        if self.measured is not None and self.measured.over_few_shot is not None:
            found.setdefault(FEW_SHOT, Changed())
        return found

    def flow(self, name: str, values: Values) -> Flow:
        """The flow of `tuned`, or of one of the alternatives."""
        if name == TUNED:
            return self._tuned(values)
        baseline = self.baselines().get(name)
        return self._alternative(name, values) if baseline is None else self._baseline(baseline, values)

    def today_per_month(self, values: Values) -> Array:
        """What calls cost a month as they are answered today."""
        inputs, outputs = values["calls.input_tokens"], values["calls.output_tokens"]
        return _serving(self.case.today, "today", inputs, outputs, values)

    def tuned_gain(self, values: Values) -> Array:
        """Accuracy with the tuned model less today's; a measured one stays within what accuracies can be."""
        alone = self.answered_alone(TUNED, values)
        return self._gain_of_all(values) if alone is None else _gain_of_alone(alone, values)

    def answered_alone(self, name: str, values: Values) -> tuple[Array, Array] | None:
        """Share and accuracy of what a way answers alone, the rest as today; None where it answers everything."""
        keys = (ALONE, ASSUMED_ALONE) if name == TUNED else (f"{ALONE}.{name}",)
        found = next((key for key in keys if f"{key}.share" in values), None)
        if found is None:
            return None
        share = values[f"{found}.share"]
        # Without an accuracy it answers nothing, and any accuracy of nothing gains the same.
        return share, values.get(f"{found}.accuracy", np.zeros_like(share))

    def _gain_of_all(self, values: Values) -> Array:
        if self.measured is None:
            return _gain(self.case.tuned, "tuned", values)
        if TUNED_ACCURACY in values:
            return values[TUNED_ACCURACY] - values[TODAY_ACCURACY]
        return self._within(values[TUNED_OVER_TODAY] * self._points(values), values)

    def gain_left(self, values: Values) -> Array | None:
        """What there is to gain over today's way; None where its accuracy is not given."""
        known = self._known_today(values)
        return None if known is None else 1.0 - known

    def _plain(self, name: str) -> Changed | None:
        way: Changed | None = getattr(self.case.alternatives, name)
        return way

    def _tuned(self, values: Values) -> Flow:
        serving = self._serving(TUNED, self.case.tuned, values) + self._answered_as_today(TUNED, values)
        gain = self.tuned_gain(values)
        training = self._one_training(values)
        people = self._people(values)
        once = people | {"training": training * values["training.num_trials"], "evaluation": self._judging(values)}
        monthly = {
            **self._monthly(gain, serving, values),
            **self._upkeep(training, values),
            "upkeep": -values["upkeep.cost_per_month"],
        }
        return Flow(gain, serving, once, monthly, values["months_until_launch"])

    def _answered_as_today(self, name: str, values: Values) -> Array:
        """What the calls cost a month that a way does not answer alone: 0 where it answers everything."""
        alone, calls = self.answered_alone(name, values), values["calls.per_month"]
        # Their calls, not a share of the costs: devices that are rented by the month cost as much for half of them.
        rest = None if alone is None else {**values, "calls.per_month": calls * (1 - alone[0])}
        return np.zeros_like(calls) if rest is None else self.today_per_month(rest)

    def _people(self, values: Values) -> dict[str, Array]:
        """Hours of people until the rows are ready, in money."""
        rate = values["people.rate_per_hour"]
        return {name: values[f"people.{name}_hours"] * rate for name in ("preparation", "annotation", "review")}

    def _judging(self, values: Values) -> Array:
        return values["evaluation.hours"] * values["people.rate_per_hour"] + values["evaluation.cost"]

    def _upkeep(self, training: Array, values: Values) -> dict[str, Array]:
        """What retraining and reviewing take off a month, where one training costs `training`."""
        rate, every = values["people.rate_per_hour"], values.get("upkeep.retrain_every_months")
        again = training + self._judging(values) + values["upkeep.work_hours_per_retraining"] * rate
        return {
            "retraining": -(again / every) if every is not None else np.zeros_like(rate),
            "review": -values["upkeep.review_hours_per_month"] * rate,
        }

    def _baseline(self, one: MeasuredBaseline, values: Values) -> Flow:
        alone = self.answered_alone(one.name, values)
        gain = (
            self._less_than_tuned(values[over_baseline(one)], values)
            if alone is None
            else _gain_of_alone(alone, values)
        )
        nothing = np.zeros_like(values["people.rate_per_hour"])
        serving = values["calls.per_month"] * values.get(f"{BASELINES}.cost_per_call", nothing)
        serving = serving + self._answered_as_today(one.name, values)
        work = values.get(f"{BASELINES}.work_hours", nothing) * values["people.rate_per_hour"]
        once = {"work": work}
        monthly = {
            **self._monthly(gain, serving, values),
            "upkeep": -values.get(f"{BASELINES}.cost_per_month", nothing),
        }
        # One answer to everything is known without preparing any rows, and does not get old by itself.
        if one.kind != "majority":
            once |= self._people(values) | {"evaluation": self._judging(values)}
            monthly |= self._upkeep(nothing, values)
        return Flow(gain, serving, once, monthly, nothing)

    def _alternative(self, name: str, values: Values) -> Flow:
        way, key = self.alternatives()[name], f"alternatives.{name}"
        serving, gain = self._serving(key, way, values), self._alternative_gain(name, way, values)
        nothing = np.zeros_like(serving)
        work = values.get(f"{key}.work_hours", nothing) * values["people.rate_per_hour"]
        once = {"work": work, "setting_up": values.get(f"{key}.cost", nothing)}
        monthly = {**self._monthly(gain, serving, values), "upkeep": -values.get(f"{key}.cost_per_month", nothing)}
        return Flow(gain, serving, once, monthly, nothing)

    def _monthly(self, gain: Array, serving: Array, values: Values) -> dict[str, Array]:
        worth = values["calls.per_month"] * gain * values["calls.value_of_one_more_correct"]
        return {ANSWERS: worth, "serving": self.today_per_month(values) - serving}

    def _alternative_gain(self, name: str, way: Changed, values: Values) -> Array:
        if name == FEW_SHOT and TUNED_OVER_FEW_SHOT in values:
            return self._less_than_tuned(values[TUNED_OVER_FEW_SHOT], values)
        return _gain(way, f"alternatives.{name}", values)

    def _less_than_tuned(self, difference: Array, values: Values) -> Array:
        # Alternative over today = (tuned - today) - (tuned - alternative); the first of them already within bounds, so
        # that its draws beyond them are not credited to the alternative.
        return self._within(self._gain_of_all(values) - difference * self._points(values), values)

    def _points(self, values: Values) -> Array:
        return values.get("verdict.correct_per_point", np.asarray(1.0))

    def _known_today(self, values: Values) -> Array | None:
        known = self.measured.today_value if self.measured is not None else None
        return values.get(TODAY_ACCURACY) if known is None else np.asarray(known)

    def _within(self, gain: Array, values: Values) -> Array:
        # A share is between 0 and 1, so a gain cannot exceed what today's way leaves open.
        known = self._known_today(values)
        return np.clip(gain, -1.0, 1.0) if known is None else np.clip(gain, -known, 1.0 - known)

    def tokens(self, key: str, way: Way, values: Values) -> tuple[Array, Array]:
        """Tokens in and out of a call that is answered this way. key: of the way, such as `tuned`."""
        inputs = values.get(f"{key}.input_tokens", values["calls.input_tokens"])
        outputs = values.get(f"{key}.output_tokens", values["calls.output_tokens"])
        shots = values.get(SHOT_TOKENS, np.asarray(0.0))
        if isinstance(way, Tuned):
            is_shown = self.measured is not None and self.case.verdict.today == FEW_SHOT and way.input_tokens is None
            inputs = inputs - values.get(f"{key}.saved_prompt_tokens", shots if is_shown else np.asarray(0.0))
        elif isinstance(way, Changed):
            is_shown = key.endswith(FEW_SHOT) and TUNED_OVER_FEW_SHOT in values and way.input_tokens is None
            inputs = inputs + values.get(f"{key}.extra_prompt_tokens", shots if is_shown else np.asarray(0.0))
        return inputs, outputs

    def _serving(self, key: str, way: Changed, values: Values) -> Array:
        inputs, outputs = self.tokens(key, way, values)
        is_own = bool(way.hosted or way.self_served or way.cost_per_call)
        served: tuple[Way, str] = (way, key) if is_own else (self.case.today, "today")
        return _serving(*served, inputs, outputs, values)

    def _one_training(self, values: Values) -> Array:
        if "training.cost" in values:
            return values["training.cost"]
        devices = values["training.hours"] * self.case.training.num_devices
        return devices * values["training.price_per_hour"]


def serving_hours(key: str, inputs: Array, outputs: Array, values: Values) -> Array:
    """Hours a month that the calls keep the devices of a self-served way busy.

    Args:
        key: of the way, such as `tuned`.
        inputs: tokens of a call's prompt, [draws].
        outputs: tokens of a call's answer, [draws].
        values: the draws of all inputs of the case, each [draws].
    """
    own = f"{key}.self_served"
    seconds = inputs / values[f"{own}.input_tokens_per_second"] + outputs / values[f"{own}.output_tokens_per_second"]
    return values["calls.per_month"] * seconds / _SECONDS_AN_HOUR


def _serving(way: Way, key: str, inputs: Array, outputs: Array, values: Values) -> Array:
    calls = values["calls.per_month"]
    if way.hosted is not None:
        price = inputs * values[f"{key}.hosted.input_price_per_million_tokens"]
        price = price + outputs * values[f"{key}.hosted.output_price_per_million_tokens"]
        return calls * price / _MILLION
    if way.self_served is not None:
        busy = serving_hours(key, inputs, outputs, values)
        # Rented hours are paid whether or not calls fill them; beyond them more must be rented.
        hours = np.maximum(values[f"{key}.self_served.hours_per_month"], busy)
        return hours * way.self_served.num_devices * values[f"{key}.self_served.price_per_hour"]
    return calls * values[f"{key}.cost_per_call"]


def _gain(way: Changed, key: str, values: Values) -> Array:
    if way.gain is not None:
        return values[f"{key}.gain"]
    return values[f"{key}.accuracy"] - values["today.accuracy"]


def _gain_of_alone(alone: tuple[Array, Array], values: Values) -> Array:
    share, accuracy = alone
    # Where it does not answer alone, nothing changes.
    return share * (accuracy - values[TODAY_ACCURACY])


def _sum(parts: dict[str, Array], like: Array) -> Array:
    total = np.zeros_like(like)
    for part in parts.values():
        total = total + part
    return total
