"""Every input of a case by its dotted key: what it is called, its typical value, its ends, and random draws of it.

A range is drawn from a PERT distribution: between its low and its high, most often near its typical value, with mean
(low + 4 typical + high) / 6. Source: Malcolm, Roseboom, Clark, Fazar, "Application of a Technique for Research and
Development Program Evaluation", Operations Research 7(5), 1959.

A measured figure is drawn so that its median is the measured value and its 2.5% and 97.5% points are the ends of its
interval: a normal distribution with a width of its own on either side.

Draws are stratified: each input takes one value out of each of `num` equally likely slices (McKay, Beckman, Conover, "A
Comparison of Three Methods for Selecting Values of Input Variables", Technometrics 21(2), 1979). The stream of an input
hangs on the seed and its key alone, so another input more or less changes nothing for the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from luthier.core.frozen_model import FrozenModel
from luthier.core.results.roi import Case, Gain, Measured, MeasuredGains, Money, Range, Share
from luthier.core.results.roi_result import Kind

Array = NDArray[np.float64]
Values = Mapping[str, Array]

DISTRIBUTION: Final = (
    "Each range is drawn from a PERT distribution between its low and its high, most often near its typical value "
    "(Malcolm et al., 1959); a measured gain from its 95% interval; every input on its own."
)
TUNED_OVER_TODAY: Final = "verdict.tuned"
TUNED_OVER_FEW_SHOT: Final = "verdict.over_few_shot"
SHOT_TOKENS: Final = "verdict.shot_tokens"
_Z: Final = float(ndtri(0.975))
_OWNERS: Final = {
    "today": "today's way",
    "tuned": "tuned model",
    "alternatives.better_prompt": "better prompt",
    "alternatives.few_shot": "few-shot",
    "alternatives.bigger_model": "bigger model",
    "alternatives.without_model": "way without a model",
}


@dataclass(frozen=True, slots=True)
class Input:
    """One input.

    Attributes:
        title: as a person reads it, its unit in it.
        range: its ends are hard, unless it was measured.
    """

    key: str
    title: str
    kind: Kind
    range: Range
    is_measured: bool = False


def inputs_of(case: Case, measured: MeasuredGains | None) -> dict[str, Input]:
    """All inputs that the case gives and the evaluation measured, in the order of the case's keys."""
    found = {one.key: one for one in _walk(case, "")}
    if measured is not None:
        against = f"{measured.metric_title}, tuned model less"
        found[TUNED_OVER_TODAY] = _measured(TUNED_OVER_TODAY, f"{against} today's way", measured.tuned, measured)
        if measured.over_few_shot is not None:
            found[TUNED_OVER_FEW_SHOT] = _measured(
                TUNED_OVER_FEW_SHOT, f"{against} few-shot", measured.over_few_shot, measured
            )
        if measured.shot_tokens is not None:
            exact = Range.exactly(measured.shot_tokens)
            found[SHOT_TOKENS] = Input(SHOT_TOKENS, "tokens of the examples in a prompt", "number", exact)
    return found


def typical_values(inputs: Mapping[str, Input]) -> dict[str, Array]:
    """Each input at its typical value, as an array without dimensions."""
    return {key: np.asarray(one.range.typical, dtype=np.float64) for key, one in inputs.items()}


def draw(inputs: Mapping[str, Input], num: int, seed: int) -> dict[str, Array]:
    """`num` draws of every input, each [num]; the same arguments give the same draws."""
    return {key: _draw(one, num, seed) for key, one in inputs.items()}


def _draw(one: Input, num: int, seed: int) -> Array:
    low, typical, high = one.range.low, one.range.typical, one.range.high
    if low == high:
        return np.full(num, typical)
    # CRC-32, not hash(): Python's hash of a text differs from process to process.
    random = np.random.default_rng([seed, zlib.crc32(one.key.encode())])
    # One level in each of `num` equal slices of (0, 1), in random order. [num]
    level = (random.permutation(num) + random.random(num)) / num
    if one.is_measured:
        deviation = ndtri(level)
        # Each side has the width of its own end of the interval, which lies at 1.96 deviations.
        return np.asarray(typical + np.where(deviation > 0, high - typical, typical - low) * deviation / _Z)
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


def _measured(key: str, title: str, found: Measured, measured: MeasuredGains) -> Input:
    kind: Kind = "gain" if measured.is_share_of_correct else "number"
    # The interval of a bootstrap need not hold the value itself.
    ends = Range(low=min(found.low, found.value), typical=found.value, high=max(found.high, found.value))
    return Input(key, title, kind, ends, is_measured=True)
