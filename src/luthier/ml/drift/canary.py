"""A canary release compared with the rest of the traffic: whether it is worse, tested at fixed interim looks.

The looks are fixed by how many exchanges there were, of canary and rest together: that number does not depend on who
was drawn into the canary, so each look is a test at a set point, whenever it is made. Look k is at `first *
1.5^(k - 1)` exchanges and spends 4 / ((k + 3) (k + 4)) of the error: a fifth of it at first, and over any number of
looks less than 1 together (a union bound; the spending of Lan and DeMets, 1983, "Discrete sequential boundaries for
clinical trials", with this sequence in place of a function of time). A canary that has stopped working is found at
once, without waiting for a look (`failing_streak`).

The test is a randomisation test over users, since it is users that were drawn into the canary. If the canary changes
nothing, every other draw of as many users was as likely: so the sum over the users of the canary is compared with its
distribution over such draws. Nothing is assumed of how exchanges of one user depend on each other, of rare failures,
long tails or hours of the day.

Sources: Fisher, 1935, "The Design of Experiments", chapter 3; of units that were randomised together, Small, Ten Have
and Rosenbaum, 2008, "Randomization inference in a group-randomized trial".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from luthier.core.records.bounds import REAL_LINE, UNIT
from luthier.core.records.deployment import CanaryRules, CanarySignal, CanaryState
from luthier.core.text.counted import counted

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

MIN_STREAK: Final = 20
MIN_USERS: Final = 2
MIN_OF_REST: Final = 5
MAX_FAILING_OF_REST: Final = 0.5


def failing_streak(frame: pl.DataFrame) -> str | None:
    """What to say where the canary's newest 20 answers have all failed, and the rest's of that time mostly not.

    At a failure rate of one in five, 20 in a row come once in 10^14 times. Two users are required, so that one alone
    cannot cause it. Where fewer than 5 of the rest were asked in that time, a complete outage would look the
    same, and nothing is reported.

    Args:
        frame: as of `compare`, in the order of `ended_at`.
    """
    canary = frame.filter(frame["is_canary"])
    newest = canary.tail(MIN_STREAK)
    if newest.height < MIN_STREAK or not bool((newest["failed"].cast(float).fill_null(0.0) == 1.0).all()):
        return None
    num_users = newest["unit"].n_unique()
    if num_users < MIN_USERS:
        return None
    begin = float(newest["ended_at"].min())  # type: ignore[arg-type]
    rest = frame.filter(~frame["is_canary"] & (frame["ended_at"] >= begin))["failed"].cast(float).fill_null(0.0)
    # None of the rest counts as failing, so that no streak is reported without a comparison.
    failing = float(np.mean(rest.to_numpy())) if rest.len() else 1.0
    if rest.len() < MIN_OF_REST or failing >= MAX_FAILING_OF_REST:
        return None
    return (
        f"the newest {MIN_STREAK} answers of the canary, of {num_users} users, have all failed, while of "
        f"{rest.len():,} of the rest in the same time {failing:.1%} did"
    )


GROWTH: Final = 1.5
_SLOWNESS: Final = 4
"""The larger, the more evenly the error is spread over the looks."""


def first_look(fraction: float, least_requests: int) -> int:
    """Exchanges of both until the canary is expected to have its least."""
    return math.ceil(least_requests / fraction)


def look_at(num_exchanges: int, first: int) -> tuple[int, int]:
    """(k, exchanges that it is about) of the newest look that this many exchanges reach; (0, 0) before the first."""
    number, reached = 0, 0
    # Places grow geometrically, so this takes a logarithmic number of turns.
    while (place := place_of(number + 1, first)) <= num_exchanges:
        number, reached = number + 1, place
    return number, reached


def place_of(number: int, first: int) -> int:
    """How many exchanges look k is at, k from 1 on."""
    return math.ceil(first * GROWTH ** (number - 1))


def level_of(number: int, error: float, num_signals: int) -> float:
    """What a p-value of one of the signals has to reach in look k.

    Args:
        number: of the look, from 1.
        error: the chance of a false alarm over all looks and signals.
        num_signals: tested at each look.
    """
    return error / num_signals * _SLOWNESS / ((number + _SLOWNESS - 1) * (number + _SLOWNESS))


MAX_OF_ONE: Final = 20
"""A user counts for at most this many exchanges: one who sends requests all day must not decide alone."""
_MAX_LEVELS: Final = 64
_BATCH: Final = 1_000
_DRAWS_PER_LEVEL: Final = 10
_Z: Final = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Units:
    """Users: their mean values, for how many exchanges each counts, and whether they are the canary's. All of (U,)."""

    mean: NDArray[np.float64]
    weight: NDArray[np.float64]
    is_canary: NDArray[np.bool_]

    @property
    def num_canary(self) -> int:
        """Users of the canary."""
        return int(self.is_canary.sum())

    @property
    def least_p_value(self) -> float:
        """The smallest p-value that any values of these users can have: one draw of all possible ones."""
        return 1 / math.comb(len(self.mean), self.num_canary)


def units_of(unit: NDArray[np.int64], is_canary: NDArray[np.bool_], values: NDArray[np.float64]) -> Units:
    """Users out of exchanges, all of (N,).

    Args:
        unit: The user of each exchange.
        is_canary: Whether the canary answered it.
        values: NaN where an exchange has none; a user without any is left out.
    """
    has = ~np.isnan(values)
    found, index, counts = np.unique(unit[has], return_inverse=True, return_counts=True)
    sums = np.bincount(index, weights=values[has], minlength=len(found))
    # All exchanges of a user have the same side, so the last assignment is as good as any.
    canary = np.zeros(len(found), dtype=bool)
    canary[index] = is_canary[has]
    return Units(sums / np.maximum(counts, 1), np.minimum(counts, MAX_OF_ONE).astype(np.float64), canary)


def p_value(units: Units, level: float, seed: int) -> float:
    """One-sided: how likely a random draw of as many users has values at least as high. Valid at any number of them.

    A Monte Carlo p-value, with the observed draw counted among them (Phipson and Smyth, 2010, "Permutation P-values
    should never be zero").

    Args:
        units: the users with their values.
        level: what it will be held against; drawing ends where it cannot be reached any more.
        seed: of the draws.
    """
    pooled = float(np.average(units.mean, weights=units.weight))
    values, counts, scores = _in_levels(units.weight * (units.mean - pooled))
    # Lower by more than rounding, so that a draw with the same users always counts as at least as high.
    observed = float(scores[units.is_canary].sum()) - 1e-9 * max(1.0, float(np.abs(values).max()))
    random = np.random.default_rng(seed)
    most = math.ceil(_DRAWS_PER_LEVEL / level)
    above = num = 0
    # Stops early once p cannot come down to `level` even if no further draw reaches the observed sum.
    while num < most and 1 + above <= level * (1 + most):
        size = min(_BATCH, most - num)
        # Only how many users of each score a draw takes matters: [size, levels] @ [levels].
        drawn = random.multivariate_hypergeometric(counts, units.num_canary, size=size, method="marginals") @ values
        above, num = above + int(np.count_nonzero(drawn >= observed)), num + size
    return (1 + above) / (1 + num)


@dataclass(frozen=True, slots=True)
class Gap:
    """Means of both sides, and the canary's less the rest's with a 95% interval."""

    canary: float
    rest: float
    difference: float
    low: float
    high: float


def gap(units: Units, *, is_fraction: bool, is_log: bool = False) -> Gap:
    """The interval counts users, not exchanges: their spread on each side (Cochran, 1977, "Sampling Techniques", 2.9).

    Values are between 0 and 1, and the interval is within the range of a difference of two such means (Fisher's z, see
    `core.bounds`).

    Args:
        units: the users with their values.
        is_fraction: values of 0 and 1; the interval is then no narrower than that of as many single exchanges with one
            failure and one success added to each side (Agresti and Caffo, 2000), so that none in fifty is not taken for
            never.
        is_log: they are logarithms, which have no ends.
    """
    sides = [
        mean_and_variance(units, side, is_fraction=is_fraction, is_score=not is_log)
        for side in (units.is_canary, ~units.is_canary)
    ]
    means, variances = [mean for mean, _ in sides], [variance for _, variance in sides]
    difference = means[0] - means[1]
    # Nearer to an end than half a user of the smaller side is not resolved by counting users.
    least = min(units.num_canary, len(units.mean) - units.num_canary)
    bounds = REAL_LINE if is_log else UNIT.of_differences
    low, high = bounds.around(difference, math.sqrt(sum(variances)), _Z, margin=1 / (2 * least))
    return Gap(means[0], means[1], difference, low, high)


def mean_and_variance(
    units: Units, side: NDArray[np.bool_], *, is_fraction: bool, is_score: bool
) -> tuple[float, float]:
    """The mean of the users of a side, and the variance of it, as `gap` describes.

    Args:
        units: the users with their values.
        side: which of them.
        is_fraction: values of 0 and 1.
        is_score: values between 0 and 1; where all users agree, the variance is that of as many who are at its ends.
    """
    mean, weight = units.mean[side], units.weight[side]
    value = float(np.average(mean, weights=weight))
    num, total = len(mean), float(weight.sum())
    # Variance of a ratio estimate: exchanges of one user are correlated, so users are the sampling units.
    spread = float(np.sum((weight * (mean - value)) ** 2)) / total**2 * num / max(num - 1, 1)
    if is_fraction:
        padded = (value * total + 1) / (total + 2)
        spread = max(spread, padded * (1 - padded) / (total + 2))
    elif is_score and spread <= 1e-18:
        # Users who all give the same score show no spread, and are no proof that others would give it, too.
        padded = (value * num + 1) / (num + 2)
        spread = padded * (1 - padded) / (num + 2)
    return value, spread


def _in_levels(
    scores: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """(values, counts, scores rounded to these): few different ones, so that draws need not go over users.

    Any fixed scores make a valid test; rounding costs next to nothing of its power.
    """
    values, counts = np.unique(scores, return_counts=True)
    if len(values) > _MAX_LEVELS:
        edges = np.linspace(values[0], values[-1], _MAX_LEVELS)
        scores = edges[np.abs(scores[:, None] - edges[None, :]).argmin(axis=1)]
        values, counts = np.unique(scores, return_counts=True)
    return values, counts.astype(np.int64), scores


_MIN_RATED: Final = 10


@dataclass(frozen=True, slots=True)
class Kind:
    """A signal that is compared.

    Attributes:
        column: of the frame; more is worse.
        margin: the rule's field.
        said_at: whether its values came after the exchange, at `rated_at`.
    """

    name: str
    title: str
    unit: str
    column: str
    margin: str
    is_ratio: bool = False
    is_fraction: bool = True
    said_at: bool = False


KINDS: Final = (
    Kind("failures", "failed requests", "fraction", "failed", "margin_failures"),
    Kind("seconds", "time to the end of the answer", "s", "seconds", "margin_seconds_ratio", True, False),
    Kind("refusals", "answers that refuse", "fraction", "refused", "margin_refusals"),
    Kind("thumbs", "answers that people rate as bad or correct", "fraction", "bad", "margin_thumbs", said_at=True),
    Kind("score", "what is missing to the full score", "score", "lacking", "margin_score", False, False, True),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """What a look has found.

    Attributes:
        num_seen: exchanges up to now.
        next_at: how many bring the next look.
    """

    state: CanaryState
    sentence: str
    look: int
    num_canary: int
    num_rest: int
    num_seen: int
    next_at: int
    signals: tuple[CanarySignal, ...] = ()


def compare(
    frame: pl.DataFrame, fraction: float, rules: CanaryRules, *, seed: int = 0, looks_before: int = 0
) -> Compared:
    """Compare a canary with the rest of its deployment.

    The chance that a canary which is no worse is called worse is at most `rules.error` over all looks, regardless of
    when and how often this is called. In addition to the looks there is `failing_streak`, for a canary that has stopped
    working.

    Args:
        frame: one row an exchange: `unit` (text; who was drawn), `is_canary`, `ended_at`, and, null where there is
            none, `failed`, `refused`, `bad` (0 or 1), `seconds`, `lacking` (0 to 1), `rated_at`.
        fraction: of the users that the canary gets.
        rules: the bound on errors, and what counts as worse.
        seed: of the draws; the same frame and seed give the same.
        looks_before: looks at the same canary while it had other fractions, which have spent their part of the error.
    """
    frame = frame.sort("ended_at", maintain_order=True)
    first = first_look(fraction, rules.least_requests)
    number, num = look_at(frame.height, first)
    next_at = place_of(number + 1, first)
    if (streak := failing_streak(frame)) is not None:
        canary = int(frame["is_canary"].sum())
        return Compared("worse", streak, number, canary, frame.height - canary, frame.height, next_at)
    if number == 0:
        words = f"{counted(frame.height, 'exchange')} so far; the first check is at {next_at:,}"
        canary = int(frame["is_canary"].sum())
        return Compared("too early", words, 0, canary, frame.height - canary, frame.height, next_at)
    # Exactly the exchanges of the planned look: more of them would make the time of looking depend on the data.
    seen = frame.head(num)
    # Shared out over all kinds, also those without values: how many have some depends on the data.
    level = level_of(looks_before + number, rules.error, len(KINDS))
    until = float(seen["ended_at"][-1])
    signals = tuple(_signal(seen, kind, rules, level, until, seed) for kind in KINDS)
    canary = int(seen["is_canary"].sum())
    worse = [one for one in signals if one.state == "worse"]
    holding = [one for one in signals if one.state == "holding"]
    if worse:
        state, words = "worse", "; ".join(one.sentence for one in worse)
    elif holding:
        state, words = "holding", f"no signal of {len(holding)} says that it is worse, at look {number}"
    else:
        state, words = "too early", f"no signal was conclusive yet, at look {number}"
    return Compared(state, words, number, canary, num - canary, frame.height, next_at, signals)  # type: ignore[arg-type]


def _signal(seen: pl.DataFrame, kind: Kind, rules: CanaryRules, level: float, until: float, seed: int) -> CanarySignal:
    values = _values(seen, kind, until)
    is_canary = seen["is_canary"].to_numpy()
    margin = float(getattr(rules, kind.margin))
    named = CanarySignal(
        name=kind.name, title=kind.title, unit=kind.unit, is_ratio=kind.is_ratio, margin=margin, level=level
    )
    units = units_of(seen["unit"].rank("dense").to_numpy().astype(np.int64), is_canary, values)
    has = ~np.isnan(values)
    num_canary, num_rest = int((has & is_canary).sum()), int((has & ~is_canary).sum())
    named = named.model_copy(
        update={"num_canary": num_canary, "num_rest": num_rest, "num_canary_units": units.num_canary}
    )
    if why := _too_early(kind, units, num_canary, num_rest, level):
        return named.model_copy(update={"sentence": f"{kind.title}: {why}"})
    found = gap(units, is_fraction=kind.is_fraction, is_log=kind.is_ratio)
    probability = p_value(units, level, seed)
    shown = _shown(found, is_ratio=kind.is_ratio)
    is_worse = probability <= level and shown["difference"] > margin
    state: CanaryState = "worse" if is_worse else "holding"
    named = named.model_copy(update={**shown, "p_value": probability, "state": state})
    return named.model_copy(update={"sentence": _sentence(named)})


def _values(seen: pl.DataFrame, kind: Kind, until: float) -> NDArray[np.float64]:
    """The values of a signal, NaN where there is none; data after this look is left to the next one."""
    values = seen[kind.column].cast(float).fill_null(math.nan).to_numpy().copy()
    if kind.said_at:
        # Negated, so that NaN, which compares false, is left out as well.
        values[~(seen["rated_at"].cast(float).fill_null(math.inf).to_numpy() <= until)] = math.nan
    if kind.is_ratio:
        with np.errstate(divide="ignore", invalid="ignore"):
            # Differences of logarithms are ratios of geometric means, which long tails hardly move.
            values = np.where(values > 0, np.log(values), math.nan)
    return values


def _too_early(kind: Kind, units: Units, num_canary: int, num_rest: int, level: float) -> str:
    """Why no conclusion is possible; empty where one is."""
    least = _MIN_RATED if kind.said_at else 1
    if num_canary < least or num_rest < least:
        return f"{num_canary:,} of the canary and {num_rest:,} of the rest, {least} of each are needed"
    if units.num_canary in (0, len(units.mean)) or units.least_p_value > level:
        others = len(units.mean) - units.num_canary
        return (
            f"too few: {counted(units.num_canary, 'user')} of the canary compared with {others:,}; chance "
            "alone could explain any difference"
        )
    return ""


def _shown(found: Gap, *, is_ratio: bool) -> dict[str, float]:
    shown = {name: getattr(found, name) for name in ("canary", "rest", "difference", "low", "high")}
    return {name: math.exp(value) for name, value in shown.items()} if is_ratio else shown


def _sentence(one: CanarySignal) -> str:
    assert one.canary is not None
    assert one.rest is not None
    assert one.difference is not None
    if one.is_ratio:
        figures = (
            f"{one.canary:.3g} {one.unit} against {one.rest:.3g} {one.unit} (geometric means), {one.difference:.2f} "
            f"times ({one.low:.2f} to {one.high:.2f}, 95%)"
        )
    elif one.unit == "fraction":
        figures = (
            f"{one.canary:.1%} against {one.rest:.1%}, {100 * one.difference:+.1f} points "
            f"({100 * (one.low or 0):+.1f} to {100 * (one.high or 0):+.1f}, 95%)"
        )
    else:
        figures = (
            f"{one.canary:.3f} against {one.rest:.3f}, {one.difference:+.3f} ({one.low:+.3f} to {one.high:+.3f}, 95%)"
        )
    return (
        f"{one.title}: {figures}, of {one.num_canary:,} and {one.num_rest:,} exchanges; "
        f"p = {one.p_value:.2g} by users, {one.level:.2g} is needed"
    )
