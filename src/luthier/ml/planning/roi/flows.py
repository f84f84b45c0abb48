"""The inputs of a case with their random draws, and the cash flows of each way against today's.

    each month   calls x (accuracy - today's) x value of a correct answer  +  serving today - serving  -  upkeep
    value(t)     each month x max(0, t - months until launch)  -  once
    payback      months until launch  +  once / each month

Nothing is discounted, and upkeep is spread evenly: a model that is retrained every six months carries a sixth of a
retraining each month. Every figure is an array: one value a draw, or one alone.

A measured baseline without a language model is fitted on the same rows as the tuned model. It carries the same hours of
people and the same evaluations, at the start and at each retraining; it saves the training, and pays no tokens. The
commonest answer needs none of them. Accuracies of alternatives follow from that of the tuned model and the paired
difference to it, so that the two are compared by the interval of that difference and by nothing else.

Inputs are known by a dotted key. A range is drawn from a PERT distribution: between its low and its high, most often
near its typical value, with mean (low + 4 typical + high) / 6. A measured figure is drawn so that its median is the
measured value and its 2.5% and 97.5% points are the ends of its interval: a normal distribution with a separate width
on either side; a measured accuracy stays between 0 and 1. Two differences on the same rows are drawn with the
correlation that they have over rows: an alternative's gain over today's way is one less the other, and drawn on their
own it would be less sure than it is. Draws are stratified: each input takes one value out of
each of `num` equally likely slices. The stream of an input hangs on the seed and its key alone, so another input more
or less changes nothing for the others.

Sources: Malcolm, Roseboom, Clark, Fazar, "Application of a Technique for Research and Development Program Evaluation",
Operations Research 7(5), 1959. McKay, Beckman, Conover, "A Comparison of Three Methods for Selecting Values of Input
Variables", Technometrics 21(2), 1979.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from luthier.core.estimate import Estimate
from luthier.core.frozen_model import FrozenModel
from luthier.core.results.roi import ALTERNATIVES, Case, Changed, Gain, Money, Range, Share, Tuned, Way
from luthier.core.results.roi_result import Kind, MeasuredBaseline, MeasuredGains
from luthier.ml.evaluation.statistics.intervals import TAIL
from luthier.ml.evaluation.statistics.resampling import share_ends
from luthier.ml.planning.roi import words

Array = NDArray[np.float64]
Values = Mapping[str, Array]

DISTRIBUTION: Final = (
    "Each range is drawn from a PERT distribution between its low and its high, most often near its typical value "
    "(Malcolm et al., 1959); a measured gain from its 95% interval; every input on its own."
)
TUNED_OVER_TODAY: Final = "verdict.tuned"
TUNED_OVER_FEW_SHOT: Final = "verdict.over_few_shot"
TUNED_ACCURACY: Final = "verdict.tuned_accuracy"
TODAY_ACCURACY: Final = "today.accuracy"
ALONE: Final = "verdict.alone"
_ASSUMED_ALONE: Final = "tuned.alone"
SHOT_TOKENS: Final = "verdict.shot_tokens"
_BASELINES: Final = "alternatives.baselines"
_Z: Final = float(ndtri(0.975))
_OWNERS: Final = {
    "today": "today's way",
    "tuned": "tuned model",
    "alternatives.better_prompt": "better prompt",
    "alternatives.few_shot": "few-shot",
    "alternatives.bigger_model": "bigger model",
    "alternatives.without_model": "way without a model",
    _BASELINES: "baseline without a model",
}


@dataclass(frozen=True, slots=True)
class Input:
    """One input.

    Attributes:
        title: as a person reads it, its unit in it.
        range: its ends are hard, unless it was measured.
        follows: key of another measured input that it is correlated with.
        correlation: of the two.
    """

    key: str
    title: str
    kind: Kind
    range: Range
    is_measured: bool = False
    follows: str = ""
    correlation: float = 0.0


def inputs_of(case: Case, measured: MeasuredGains | None) -> dict[str, Input]:
    """All inputs that the case gives and the evaluation measured, in the order of the case's keys."""
    found = {one.key: one for one in _walk(case, "")}
    counted = given_accuracy(case) if case.today.counted is not None else None
    if counted is not None:
        found[TODAY_ACCURACY] = Input(TODAY_ACCURACY, "accuracy, today's way", "share", counted, is_measured=True)
    if measured is not None:
        against = f"{measured.metric_title}, tuned model less"
        if measured.today_kind == "given" and measured.tuned_figure is not None:
            title = f"{measured.metric_title}, tuned model"
            found[TUNED_ACCURACY] = _measured(TUNED_ACCURACY, title, measured.tuned_figure, measured, "share")
        else:
            found[TUNED_OVER_TODAY] = _measured(TUNED_OVER_TODAY, f"{against} today's way", measured.tuned, measured)
        follows = TUNED_ACCURACY if TUNED_ACCURACY in found else TUNED_OVER_TODAY
        for one in measured.baselines:
            key = over_baseline(one)
            over = _measured(key, f"{against} {one.title}", one.tuned_less, measured)
            found[key] = replace(over, follows=follows, correlation=one.correlation)
        if measured.over_few_shot is not None:
            over = _measured(TUNED_OVER_FEW_SHOT, f"{against} few-shot", measured.over_few_shot, measured)
            found[over.key] = replace(over, follows=follows, correlation=measured.few_shot_correlation)
        found |= {one.key: one for one in _alone_inputs(measured)}
        if measured.shot_tokens is not None:
            exact = Range.exactly(measured.shot_tokens)
            found[SHOT_TOKENS] = Input(SHOT_TOKENS, "tokens of the examples in a prompt", "number", exact)
    return found


def _alone_inputs(measured: MeasuredGains) -> Iterator[Input]:
    """Share and accuracy of what each system answers alone."""
    systems = [("tuned model", ALONE, measured.alone)]
    systems += [(one.title, f"{ALONE}.{one.name}", one.alone) for one in measured.baselines]
    for title, key, alone in systems:
        if alone is None:
            continue
        for name, title_of, found in (
            ("share", "share answered alone", alone.share),
            ("accuracy", "accuracy of what is answered alone", alone.accuracy),
        ):
            if found is None:
                continue  # of nothing there is no accuracy
            ends = Range(low=found.low, typical=found.value, high=found.high)
            yield Input(f"{key}.{name}", f"{title_of}, {title}", "share", ends, is_measured=True)


def over_baseline(one: MeasuredBaseline) -> str:
    """The key of the tuned model's gain over a baseline."""
    return f"verdict.over.{one.name}"


def given_accuracy(case: Case) -> Share | None:
    """Today's accuracy as the case gives it, or as Wilson's interval says of the answers that were counted."""
    counted = case.today.counted
    if counted is None:
        return case.today.accuracy
    low, high = share_ends(counted.num_correct, counted.num_answers, TAIL)
    return Share(low=low, typical=counted.num_correct / counted.num_answers, high=high)


def today_accuracy(case: Case, measured: MeasuredGains | None) -> Estimate | None:
    """How accurate today's way is, as measured or as the case says; None where neither says it."""
    if measured is not None and measured.today_kind != "given":
        return measured.today_figure if measured.is_share_of_correct else None
    given = given_accuracy(case)
    return None if given is None else Estimate(value=given.typical, low=given.low, high=given.high)


def typical_values(inputs: Mapping[str, Input]) -> dict[str, Array]:
    """Each input at its typical value, as an array without dimensions."""
    return {key: np.asarray(one.range.typical, dtype=np.float64) for key, one in inputs.items()}


def draw(inputs: Mapping[str, Input], num: int, seed: int) -> dict[str, Array]:
    """`num` draws of every input, each [num]; the same arguments give the same draws."""
    return {key: _draw(one, inputs.get(one.follows), num, seed) for key, one in inputs.items()}


def _levels(one: Input, num: int, seed: int) -> Array:
    """One level in each of `num` equal slices of (0, 1), in random order: [num]."""
    # CRC-32, not hash(): Python's hash of a text differs from process to process.
    random = np.random.default_rng([seed, zlib.crc32(one.key.encode())])
    return np.asarray((random.permutation(num) + random.random(num)) / num)


def _draw(one: Input, followed: Input | None, num: int, seed: int) -> Array:
    low, typical, high = one.range.low, one.range.typical, one.range.high
    if low == high:
        return np.full(num, typical)
    level = _levels(one, num, seed)
    if one.is_measured:
        deviation = ndtri(level)
        if followed is not None:
            # A sum of two normal variables with these weights is normal again, with that correlation to the first.
            # A perfect correlation may be above 1 in its last bit, and then has no root.
            other, rest = ndtri(_levels(followed, num, seed)), np.sqrt(max(0.0, 1 - one.correlation**2))
            deviation = one.correlation * other + rest * deviation
        # Each side has the width of its own end of the interval, which is at 1.96 deviations.
        found = np.asarray(typical + np.where(deviation > 0, high - typical, typical - low) * deviation / _Z)
        return np.clip(found, 0.0, 1.0) if one.kind == "share" else found
    # The shape parameters of the beta distribution; its inverse turns levels into draws.
    left, right = 1 + 4 * (typical - low) / (high - low), 1 + 4 * (high - typical) / (high - low)
    return np.asarray(low + (high - low) * betaincinv(left, right, level))


def _walk(spec: FrozenModel, prefix: str) -> Iterator[Input]:
    for name, info in type(spec).model_fields.items():
        value, key = getattr(spec, name), f"{prefix}{name}"
        if isinstance(value, Range):
            yield Input(key, _title(info.title or name.replace("_", " "), key), _kind(value), value)
        elif isinstance(value, FrozenModel):
            yield from _walk(value, f"{key}.")


def _title(title: str, key: str) -> str:
    owner = next((words for start, words in _OWNERS.items() if key.startswith(f"{start}.")), None)
    return f"{title}, {owner}" if owner else title


def _kind(value: Range) -> Kind:
    if isinstance(value, Money):
        return "money"
    return "gain" if isinstance(value, Gain) else "share" if isinstance(value, Share) else "number"


def _measured(key: str, title: str, found: Estimate, measured: MeasuredGains, share: Kind = "gain") -> Input:
    kind: Kind = share if measured.is_share_of_correct else "number"
    # The interval of a bootstrap need not hold the value itself.
    ends = Range(low=min(found.low, found.value), typical=found.value, high=max(found.high, found.value))
    return Input(key, title, kind, ends, is_measured=True)


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
        keys = (ALONE, _ASSUMED_ALONE) if name == TUNED else (f"{ALONE}.{name}",)
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
        serving = values["calls.per_month"] * values.get(f"{_BASELINES}.cost_per_call", nothing)
        serving = serving + self._answered_as_today(one.name, values)
        work = values.get(f"{_BASELINES}.work_hours", nothing) * values["people.rate_per_hour"]
        once = {"work": work}
        monthly = {
            **self._monthly(gain, serving, values),
            "upkeep": -values.get(f"{_BASELINES}.cost_per_month", nothing),
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
