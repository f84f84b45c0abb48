"""What is watched by the hour: latency, first token, speed and cost, which the exchanges of an hour have in common.

Exchanges that ran at the same time are slow together, so that they are no evidence of their own: an hour is one value.
It is compared with hours of the same quarter of the day, weekend or not, because a server with more to do is slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from luthier.core.results.signal import Signal
from luthier.ml.drift.drift.evidence import FALSE_ALARMS_A_MONTH, evidence, false_alarms_a_month, has_ended
from luthier.ml.drift.drift.ranks import Floats, Ints, conformal_ranks, lots
from luthier.ml.drift.signals.column import Rows
from luthier.ml.drift.signals.signal_test import MAX_EXAMPLES, Tested, quantile

FEWEST_AN_HOUR: Final = 5
FEWEST_HOURS_BEFORE: Final = 96
FEWEST_HOURS_NOW: Final = 6
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
    hours, of_hour = _by_hour(values, rows.hours, one.share)
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
        f"Unknown: {num_now:,} hours now and {num_before:,} before with at least {FEWEST_AN_HOUR} exchanges; "
        f"{FEWEST_HOURS_NOW} and {FEWEST_HOURS_BEFORE} are needed."
    )
