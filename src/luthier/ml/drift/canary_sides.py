"""Both sides of a canary release beside each other: failures, latency, ratings and scores, with intervals over users.

What a person reads who decides by hand. Each figure has a plain 95% interval. Whether a difference is distinguishable
is decided with the error of 5% shared out over all measures (Bonferroni), so that of measures that are all the same not
every fifth page shows one. It is no sequential test: rollbacks are decided by `ml.drift.canary`, whose bound holds over
all looks.

Users are the units, since it is users that were drawn: means by the spread of users (`ml.drift.canary.gap`), quantiles
of seconds by a bootstrap over users (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, 3.8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import ndtri

from luthier.core.evaluation import NOT_DISTINGUISHABLE
from luthier.core.records.bounds import UNIT
from luthier.core.records.deployment import CanaryFinding, CanaryMeasure, SideValue
from luthier.core.text.counted import counted
from luthier.ml.drift.canary import Units, mean_and_variance, units_of

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

FEWEST_ANSWERS: Final = 50
"""Of each side, before any conclusion about failures and seconds."""
FEWEST_RATED: Final = 20
"""Of each side, with a thumb, a score or a judge's rating."""
FEWEST_USERS: Final = 5
NUM_MEASURES: Final = 6
_ERROR: Final = 0.05
_NUM_DRAWS: Final = 1_200
_MAX_VALUES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured.

    Attributes:
        name: for programs.
        title: for people.
        unit: of its values.
        column: of the frame.
        quantile: which quantile of the column; None for its mean.
        fewest: values of each side, before any conclusion.
        is_fraction: whether values are 0 and 1.
        is_better_high: whether high values are the good ones.
    """

    name: str
    title: str
    unit: str
    column: str
    fewest: int
    quantile: float | None = None
    is_fraction: bool = False
    is_better_high: bool = False


MEASURES: Final = (
    Measure("failures", "Failed requests", "fraction", "failed", FEWEST_ANSWERS, is_fraction=True),
    Measure("seconds_p50", "Time to the end of the answer, median", "s", "seconds", FEWEST_ANSWERS, 0.5),
    Measure("seconds_p95", "Time to the end of the answer, 95th percentile", "s", "seconds", FEWEST_ANSWERS, 0.95),
    Measure("thumbs", "Answers rated as bad or corrected", "fraction", "bad", FEWEST_RATED, is_fraction=True),
    Measure("score", "Mean score of people", "score", "score", FEWEST_RATED, is_better_high=True),
    Measure("judge", "Mean score of the judge, 0 to 1", "score", "judged", FEWEST_RATED, is_better_high=True),
)


def both_sides(frame: pl.DataFrame, *, seed: int = 0) -> tuple[CanaryMeasure, ...]:
    """All measures of both sides.

    Args:
        frame: as of `ml.drift.canary.compare`, with the columns `score` and `judged` (0 to 1, null where none is).
        seed: of the draws; the same frame and seed give the same.
    """
    unit = frame["unit"].rank("dense").to_numpy().astype(np.int64)
    is_canary = frame["is_canary"].to_numpy()
    found = []
    for measure in MEASURES:
        values = frame[measure.column].cast(float).fill_null(math.nan).to_numpy()
        found.append(_measured(measure, unit, is_canary, values, seed))
    return tuple(found)


def summary_of(measures: tuple[CanaryMeasure, ...]) -> str:
    """Whether the two can be distinguished, in words. Titles have commas, so that semicolons part them."""
    found = {finding: [one.title for one in measures if one.finding == finding] for finding in ("worse", "better")}
    num_open = sum(one.finding == NOT_DISTINGUISHABLE for one in measures)
    if found["worse"] or found["better"]:
        said: list[str] = []
        for finding, titles in found.items():
            listed = "; ".join(title.lower() for title in titles)
            if titles:
                said.append(f"It is {finding} in: {listed}." if said else f"The canary is {finding} in: {listed}.")
        if num_open:
            said.append(f"In {counted(num_open, 'other measure')} no difference can be distinguished.")
        return " ".join(said)
    if num_open:
        return (
            "No difference between the canary and the rest can be distinguished so far, in "
            f"{counted(num_open, 'measure')}."
        )
    return "There is too little traffic yet to distinguish the canary from the rest."


def _measured(
    measure: Measure, unit: NDArray[np.int64], is_canary: NDArray[np.bool_], values: NDArray[np.float64], seed: int
) -> CanaryMeasure:
    named = CanaryMeasure(
        name=measure.name, title=measure.title, unit=measure.unit, is_better_high=measure.is_better_high
    )
    has = ~np.isnan(values)
    sides = [has & is_canary, has & ~is_canary]
    if not any(side.any() for side in sides):
        return named.model_copy(update={"missing": _missing(measure, 0, 0, 0, 0)})
    if measure.quantile is None:
        values_of, gap = _means(measure, units_of(unit, is_canary, values), sides)
    else:
        values_of, gap = _quantiles(measure.quantile, unit, values, sides, seed)
    canary, rest = values_of
    missing = _missing(
        measure, *(int(side.sum()) for side in sides), *(one.num_users if one else 0 for one in values_of)
    )
    found: dict[str, object] = {"canary": canary, "rest": rest, "missing": missing}
    if gap is not None:
        found |= {"difference": gap.difference, "low": gap.low, "high": gap.high}
        found["finding"] = "too few" if missing else _finding(gap, is_better_high=measure.is_better_high)
    return named.model_copy(update=found)


@dataclass(frozen=True, slots=True)
class _Gap:
    """A difference with its 95% interval and with the wider one that is shared out over all measures."""

    difference: float
    low: float
    high: float
    sure_low: float
    sure_high: float


def _finding(gap: _Gap, *, is_better_high: bool) -> CanaryFinding:
    if gap.sure_low <= 0 <= gap.sure_high:
        return NOT_DISTINGUISHABLE
    return "better" if (gap.sure_low > 0) == is_better_high else "worse"


def _missing(measure: Measure, num_canary: int, num_rest: int, canary_users: int, rest_users: int) -> str:
    """What a conclusion still needs; empty where it is possible."""
    what = "more answer" if measure.fewest == FEWEST_ANSWERS else "more rating"
    parts = []
    for name, num, users in (("the canary", num_canary, canary_users), ("the rest", num_rest, rest_users)):
        if num < measure.fewest:
            parts.append(f"{counted(measure.fewest - num, what)} of {name}")
        elif users < FEWEST_USERS:
            parts.append(f"{counted(FEWEST_USERS - users, 'more user')} of {name}")
    return f"needs {' and '.join(parts)}" if parts else ""


def _means(
    measure: Measure, units: Units, sides: list[NDArray[np.bool_]]
) -> tuple[tuple[SideValue | None, SideValue | None], _Gap | None]:
    found: list[SideValue | None] = []
    moments: list[tuple[float, float]] = []
    for of_unit, side in zip((units.is_canary, ~units.is_canary), sides, strict=True):
        if not of_unit.any():
            found.append(None)
            continue
        mean, variance = mean_and_variance(units, of_unit, is_fraction=measure.is_fraction, is_score=True)
        num_users = int(of_unit.sum())
        low, high = UNIT.around(mean, math.sqrt(variance), _z(_ERROR), margin=1 / (2 * num_users))
        found.append(SideValue(value=mean, low=low, high=high, num=int(side.sum()), num_users=num_users))
        moments.append((mean, variance))
    if len(moments) < 2:
        return (found[0], found[1]), None
    # No user is on both sides, so the variances add up.
    difference, error = moments[0][0] - moments[1][0], math.sqrt(moments[0][1] + moments[1][1])
    least = min(one.num_users for one in found if one is not None)
    ends = [
        UNIT.of_differences.around(difference, error, _z(level), margin=1 / (2 * least))
        for level in (_ERROR, _ERROR / NUM_MEASURES)
    ]
    return (found[0], found[1]), _Gap(difference, *ends[0], *ends[1])


def _quantiles(
    share: float, unit: NDArray[np.int64], values: NDArray[np.float64], sides: list[NDArray[np.bool_]], seed: int
) -> tuple[tuple[SideValue | None, SideValue | None], _Gap | None]:
    random = np.random.default_rng(seed)
    found: list[SideValue | None] = []
    drawn = []
    for side in sides:
        if not side.any():
            found.append(None)
            continue
        # The newest: a bound on the work, and what users see now.
        places = np.flatnonzero(side)[-_MAX_VALUES:]
        draws, num_users = _drawn_quantiles(share, unit[places], values[places], random)
        low, high = np.quantile(draws, [_ERROR / 2, 1 - _ERROR / 2])
        value = float(np.quantile(values[places], share))
        found.append(SideValue(value=value, low=float(low), high=float(high), num=int(side.sum()), num_users=num_users))
        drawn.append(draws)
    canary, rest = found
    if canary is None or rest is None:
        return (canary, rest), None
    # Draws of the two sides are independent, so pairing them in any order gives the distribution of the difference.
    gaps = drawn[0] - drawn[1]
    tails = [end for level in (_ERROR, _ERROR / NUM_MEASURES) for end in (level / 2, 1 - level / 2)]
    low, high, sure_low, sure_high = (float(end) for end in np.quantile(gaps, tails))
    return (canary, rest), _Gap(canary.value - rest.value, low, high, sure_low, sure_high)


def _drawn_quantiles(
    share: float, unit: NDArray[np.int64], values: NDArray[np.float64], random: np.random.Generator
) -> tuple[NDArray[np.float64], int]:
    """The quantile in each draw of as many users, and the number of users."""
    # Sorted once: each draw only changes how often a value counts.
    order = np.argsort(values, kind="stable")
    ordered, of_user = values[order], np.unique(unit[order], return_inverse=True)[1]
    num_users = int(of_user.max()) + 1
    found = np.empty(_NUM_DRAWS)
    for number in range(_NUM_DRAWS):
        # Users are drawn and not answers: the answers of one user depend on each other.
        times = np.bincount(random.integers(0, num_users, num_users), minlength=num_users)
        # How often each value counts in this draw, in the order of the values.
        reached = np.cumsum(times[of_user])
        found[number] = ordered[min(int(np.searchsorted(reached, share * reached[-1])), len(ordered) - 1)]
    return found, num_users


def _z(error: float) -> float:
    return float(ndtri(1 - error / 2))
