"""A canary beside the rest: signals at the newest look, and whether one of them says that it is worse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from luthier.core.records.canary_watch import CanaryRules, CanarySignal, CanaryState
from luthier.ml.drift.canary.failure_streak import failing_streak
from luthier.ml.drift.canary.interim_looks import first_look, level_of, look_at, place_of
from luthier.ml.drift.canary.randomisation import Gap, Units, gap, p_value, units_of

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

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


def compare(frame: pl.DataFrame, fraction: float, rules: CanaryRules, *, seed: int = 0) -> Compared:
    """Hold a canary against the rest of its deployment.

    The chance that a canary which is no worse is called worse is at most `rules.error` over all looks, whenever this is
    called and however often. Apart from the looks there is `failing_streak`, for a canary that has stopped working.

    Args:
        frame: one row an exchange: `unit` (text; who was drawn), `is_canary`, `ended_at`, and, null where there is
            none, `failed`, `refused`, `bad` (0 or 1), `seconds`, `lacking` (0 to 1), `rated_at`.
        fraction: of the users that the canary gets.
        seed: of the draws; the same frame and seed give the same.
    """
    frame = frame.sort("ended_at", maintain_order=True)
    first = first_look(fraction, rules.least_requests)
    number, num = look_at(frame.height, first)
    next_at = place_of(number + 1, first)
    if (streak := failing_streak(frame)) is not None:
        canary = int(frame["is_canary"].sum())
        return Compared("worse", streak, number, canary, frame.height - canary, frame.height, next_at)
    if number == 0:
        words = f"{frame.height:,} exchanges so far; the first look is at {next_at:,}"
        canary = int(frame["is_canary"].sum())
        return Compared("too early", words, 0, canary, frame.height - canary, frame.height, next_at)
    # Exactly the exchanges of the planned look: more of them would make the time of looking depend on the data.
    seen = frame.head(num)
    # Shared out over all kinds, also those without values: how many have some depends on the data.
    level = level_of(number, rules.error, len(KINDS))
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
        state, words = "too early", f"no signal could tell yet, at look {number}"
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
    """The values of a signal, NaN where there is none; what was said after this look is left to the next one."""
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
    """Why nothing can be said; empty where something can."""
    least = _MIN_RATED if kind.said_at else 1
    if num_canary < least or num_rest < least:
        return f"{num_canary:,} of the canary and {num_rest:,} of the rest, {least} of each are needed"
    if units.num_canary in (0, len(units.mean)) or units.least_p_value > level:
        others = len(units.mean) - units.num_canary
        return (
            f"{units.num_canary:,} users of the canary beside {others:,} are too few: who they happen to be could "
            "explain any difference"
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
