"""From a column to its signal: figures of the window and of the time before it, and the evidence of a change.

Latency, first token, speed and cost are tested by the hour (`hour_signals`). Exchanges that ran at the same time are
slow together, so they are not independent evidence: an hour is one value. It is compared with hours of the same
quarter of the day, weekend or not, because a busier server is slower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from scipy.stats import binom

from luthier.core.records.monitoring import Signal, SignalState
from luthier.core.text.counted import counted
from luthier.ml.drift.evidence import (
    Evidence,
    Floats,
    Ints,
    Slots,
    conformal_ranks,
    evidence,
    false_alarms_a_month,
    has_ended,
    lots,
    matched,
    no_slots,
    psi,
    slots_of,
)
from luthier.ml.drift.signals.columns import Checks, Column, Rows
from luthier.ml.drift.thresholds import (
    FALSE_ALARMS_A_MONTH,
    FEWEST_AN_HOUR,
    FEWEST_BEFORE,
    FEWEST_HOURS_BEFORE,
    FEWEST_HOURS_NOW,
    FEWEST_NOW,
)

ENOUGH_FOR_SLOTS: Final = 8_000
"""From this many exchanges on, each is compared with those of the same quarter of the day, weekend or not."""
MAX_EXAMPLES: Final = 5
TAIL: Final = 0.025


@dataclass(frozen=True, slots=True)
class Tested:
    """A signal, and its strength after each hour, for the picture: natural logarithms, [hours]."""

    signal: Signal
    hours: Ints
    log_strength: Floats


def column_signal(column: Column, rows: Rows, checks: Checks, num_signals: int) -> Tested:
    """The signal of a column.

    Args:
        column: the values, one an exchange.
        rows: the exchanges.
        checks: of texts.
        num_signals: of the model in all, which the bound on false alarms is shared out to.
    """
    has = np.isfinite(column.values)
    at = np.flatnonzero(has & rows.is_tested)
    ids = rows.ids
    # Ties are broken by lots that depend on the id alone: the same traffic gives the same ranks in every look.
    ranks = conformal_ranks(
        column.values[at], rows.hours[at], lots([ids[place] for place in at], column.name), slots_for(len(at))
    )
    found = evidence(ranks, rows.hours[at])
    now, before = column.values[has & rows.is_now], column.values[has & ~rows.is_now]
    value, low, high, reference = figures(column, now, before, checks)
    shared: dict[str, Any] = {
        "name": column.name,
        "title": column.title,
        "group": column.group,
        "unit": column.unit,
        "value": value,
        "low": low,
        "high": high,
        "reference": reference,
    }
    num_now, num_before = int(rows.is_now[at].sum()), int((~rows.is_now[at]).sum())
    if found is None or not len(now):
        sentence = f"Unknown: {column.lacks or 'no exchange of this time has it'}."
        return Tested(Signal(**shared, sentence=sentence), np.empty(0, dtype=np.int64), np.empty(0))
    chance = false_alarms_a_month(float(found.log_strength[-1]), num_signals)
    # The statistic only ever grows in expectation, so that a change is over must be seen by its fall.
    is_over = has_ended(found.dropped, num_signals)
    state = state_of(chance, num_before, num_now, is_over=is_over)
    since, examples = None, ()
    if state == "changed":
        shows = at[(ranks >= found.low) & (ranks <= found.high) & (rows.hours[at] >= found.began)]
        since = float(rows.at[shows[0]]) if len(shows) else None
        examples = tuple(ids[place] for place in shows[::-1][:MAX_EXAMPLES])
    sentence = _sentence(column, state, found, num_before, num_now)
    do = column.do if state == "changed" else ""
    signal = Signal(**shared, p_value=chance, state=state, since=since, examples=examples, sentence=sentence, do=do)
    return Tested(signal, found.hours, found.log_strength)


def slots_for(num: int) -> Slots:
    """How hours are distinguished: the number of exchanges decides, never what is in them."""
    return slots_of if num >= ENOUGH_FOR_SLOTS else no_slots


def state_of(chance: float, num_before: int, num_now: int, *, is_over: bool) -> SignalState:
    """Changed where steady traffic hardly gives it; steady only where there is enough to have seen a change.

    Args:
        chance: the p-value of the window.
        num_before: values before the window.
        num_now: values in the window.
        is_over: whether a change has ended, so that all is as before again.
    """
    if chance <= FALSE_ALARMS_A_MONTH and not is_over:
        return "changed"
    return "steady" if num_before >= FEWEST_BEFORE and num_now >= FEWEST_NOW else "unknown"


def too_few(num_before: int, num_now: int) -> str:
    """Why no conclusion is possible yet."""
    return (
        f"Unknown: {counted(num_now, 'exchange')} now and {num_before:,} before that could be compared; "
        f"{FEWEST_NOW} and {FEWEST_BEFORE} are needed."
    )


def figures(
    column: Column, now: Floats, before: Floats, checks: Checks
) -> tuple[float | None, float | None, float | None, float | None]:
    """Value, its 95% interval, and the same before: a share, a median, or the PSI against before (of kinds).

    Args:
        column: whose kind decides which figure it is.
        now: [exchanges], values in the window.
        before: [exchanges], values before it.
        checks: the statistics to use.
    """
    if not len(now):
        return None, None, None, None
    if column.kind == "share":
        ends = checks.share_ends(float(now.sum()), len(now), TAIL)
        return float(now.mean()), *ends, float(before.mean()) if len(before) else None
    if column.kind == "kind":
        if not len(before):
            return None, None, None, None
        apart = psi(*matched(before, now, int(max(now.max(), before.max())) + 1))
        return apart.value, *apart.ends(TAIL), 0.0
    return *quantile(now, 0.5), float(np.median(before)) if len(before) else None


def quantile(values: Floats, share: float) -> tuple[float, float, float]:
    """A quantile and its 95% interval by order statistics (David, Nagaraja, "Order Statistics", 2003, section 7.1)."""
    ordered = np.sort(values)
    # The number of n values below the true quantile is binomial; its quantiles are the ranks of the interval's ends.
    low = int(binom.ppf(TAIL, len(ordered), share)) - 1
    high = int(binom.ppf(1 - TAIL, len(ordered), share))
    last = len(ordered) - 1
    return float(np.quantile(ordered, share)), float(ordered[max(0, low)]), float(ordered[min(high, last)])


def _sentence(column: Column, state: SignalState, found: Evidence, num_before: int, num_now: int) -> str:
    if state == "unknown":
        return too_few(num_before, num_now)
    if state == "steady":
        return f"{column.title}: as before, over {num_now:,} exchanges now and {num_before:,} before."
    moved = f"about {100 * found.moved:.0f}% of the exchanges have moved"
    if column.kind == "kind":
        return f"{column.title} are distributed differently: {moved}."
    side = (
        "up" if found.low + found.high > 1 + 1e-9 else "down" if found.low + found.high < 1 - 1e-9 else "to the middle"
    )
    if column.kind == "share":
        return f"{column.title}: {side}; {moved}."
    below, above = math.floor(100 * found.low), math.ceil(100 * found.high)
    share = f"about {100 * found.moved:.0f}% of the exchanges"
    return f"{column.title}: {share} moved {side}, into the range that had {below} to {above}% before."


_SLOWER: Final = "See what else runs on the machine and whether prompts or answers have become longer; add a replica."


@dataclass(frozen=True, slots=True)
class _Hourly:
    """A quantile of an hour's exchanges.

    Attributes:
        is_worse_high: whether high values are the bad ones, for the examples.
    """

    name: str
    title: str
    unit: str
    share: float
    values: pl.Expr
    do: str
    is_worse_high: bool = True


_SECONDS: Final = pl.when(pl.col("status") < 400).then(pl.col("seconds"))
_SPEED: Final = pl.col("num_new_tokens") / (pl.col("seconds") - pl.col("first_token_seconds").fill_null(0.0))
HOURLY: Final = (
    _Hourly("latency_p50_seconds", "Latency, median", "seconds", 0.5, _SECONDS, _SLOWER),
    _Hourly("latency_p95_seconds", "Latency, 95th percentile", "seconds", 0.95, _SECONDS, _SLOWER),
    _Hourly("latency_p99_seconds", "Latency, 99th percentile", "seconds", 0.99, _SECONDS, _SLOWER),
    _Hourly(
        "first_token_p95_seconds",
        "First token, 95th percentile",
        "seconds",
        0.95,
        pl.col("first_token_seconds"),
        _SLOWER,
    ),
    _Hourly(
        "tokens_per_second",
        "Tokens a second, median",
        "tokens/s",
        0.5,
        pl.when((pl.col("status") < 400) & (pl.col("num_new_tokens") > 1)).then(_SPEED),
        _SLOWER,
        is_worse_high=False,
    ),
    _Hourly(
        "cost_usd",
        "Cost of an exchange, median",
        "USD",
        0.5,
        pl.col("cost_usd"),
        "See whether prompts or answers have become longer, or prices were changed.",
    ),
)


def hour_signals(rows: Rows, num_signals: int) -> list[Tested]:
    """The signals by the hour.

    Args:
        rows: the exchanges.
        num_signals: of the model in all.
    """
    return [_hour_signal(one, rows, num_signals) for one in HOURLY]


def _hour_signal(one: _Hourly, rows: Rows, num_signals: int) -> Tested:
    values = rows.frame.select(one.values.cast(pl.Float64).alias("value"))["value"].fill_null(np.nan).to_numpy()
    # Tokens over zero seconds are an infinite speed, which is no value.
    values = np.where(np.isfinite(values), values, np.nan)
    has = np.isfinite(values)
    now, before = values[has & rows.is_now], values[has & ~rows.is_now]
    shared: dict[str, Any] = {"name": one.name, "title": one.title, "group": "serving", "unit": one.unit}
    if not len(now):
        lacks = "no prices are set" if one.name == "cost_usd" else "no exchange of this time has it"
        return Tested(
            Signal(**shared, value=None, sentence=f"Unknown: {lacks}."), np.empty(0, dtype=np.int64), np.empty(0)
        )
    value, low, high = quantile(now, one.share)
    shared |= {"value": value, "low": low, "high": high}
    shared["reference"] = float(np.quantile(before, one.share)) if len(before) else None
    # The interval above is of exchanges, the test is of hours: exchanges of one hour are not independent.
    hours, of_hour = _by_hour(np.where(rows.is_compared, values, np.nan), rows.hours, one.share)
    ranks = conformal_ranks(of_hour, hours, lots([str(hour) for hour in hours], one.name))
    found = evidence(ranks, hours)
    first = int(rows.hours[rows.is_now][0])
    num_now, num_before = int((hours >= first).sum()), int((hours < first).sum())
    if found is None:
        sentence = f"Unknown: no hour has {FEWEST_AN_HOUR} exchanges."
        return Tested(Signal(**shared, sentence=sentence), np.empty(0, dtype=np.int64), np.empty(0))
    chance = false_alarms_a_month(float(found.log_strength[-1]), num_signals)
    if chance > FALSE_ALARMS_A_MONTH or has_ended(found.dropped, num_signals):
        is_enough = num_before >= FEWEST_HOURS_BEFORE and num_now >= FEWEST_HOURS_NOW
        sentence = f"{one.title}: as in the same hours before." if is_enough else _too_few(num_before, num_now)
        state = "steady" if is_enough else "unknown"
        signal = Signal(**shared, p_value=chance, state=state, sentence=sentence)
        return Tested(signal, found.hours, found.log_strength)
    shows = np.flatnonzero(has & (rows.hours >= found.began) & rows.is_now)
    order = np.argsort(values[shows], kind="stable")
    chosen = shows[order[::-1] if one.is_worse_high else order][:MAX_EXAMPLES]
    since = rows.at[np.flatnonzero(has & (rows.hours >= found.began))[0]]
    # The middle of the range of ranks that gained: above 1/2 means higher values.
    side = "higher" if found.low + found.high > 1 else "lower"
    signal = Signal(
        **shared,
        p_value=chance,
        state="changed",
        since=float(since),
        examples=tuple(rows.ids[place] for place in chosen),
        sentence=f"{one.title}: {side} than in the same hours before.",
        do=one.do,
    )
    return Tested(signal, found.hours, found.log_strength)


def _by_hour(values: Floats, hours: Ints, share: float) -> tuple[Ints, Floats]:
    """The quantile of each hour that has enough exchanges."""
    frame = pl.DataFrame({"hour": hours, "value": values}).filter(pl.col("value").is_not_nan())
    found = frame.group_by("hour").agg(pl.col("value").quantile(share, "linear"), num=pl.len()).sort("hour")
    found = found.filter(pl.col("num") >= FEWEST_AN_HOUR)
    return found["hour"].to_numpy(), found["value"].to_numpy()


def _too_few(num_before: int, num_now: int) -> str:
    return (
        f"Unknown: {counted(num_now, 'hour')} now and {num_before:,} before with at least {FEWEST_AN_HOUR} exchanges; "
        f"{FEWEST_HOURS_NOW} and {FEWEST_HOURS_BEFORE} are needed."
    )
