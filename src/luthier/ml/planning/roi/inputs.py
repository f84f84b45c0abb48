"""The inputs of a case: what it says, what an evaluation has measured, and random draws of both.

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
from luthier.core.results.roi import Case, Gain, Money, Range, Share
from luthier.core.results.roi_result import Kind, MeasuredBaseline, MeasuredGains
from luthier.ml.evaluation.statistics.intervals import TAIL
from luthier.ml.evaluation.statistics.resampling import share_ends

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
ASSUMED_ALONE: Final = "tuned.alone"
SHOT_TOKENS: Final = "verdict.shot_tokens"
BASELINES: Final = "alternatives.baselines"
_Z: Final = float(ndtri(0.975))
_OWNERS: Final = {
    "today": "today's way",
    "tuned": "tuned model",
    "alternatives.better_prompt": "better prompt",
    "alternatives.few_shot": "few-shot",
    "alternatives.bigger_model": "bigger model",
    "alternatives.without_model": "way without a model",
    BASELINES: "baseline without a model",
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
