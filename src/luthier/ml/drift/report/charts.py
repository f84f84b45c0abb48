"""The pictures of a look: traffic and latency by the hour, and how strong the evidence of each change has become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np

from luthier.ml.charts.figures import number, rough
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Mark, Plot, Series, Span, Tick, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.charts.ticks import linear_ticks
from luthier.ml.drift.drift.evidence import FALSE_ALARMS_A_MONTH, false_alarms_a_month, needed_strength
from luthier.ml.drift.drift.ranks import Ints
from luthier.ml.drift.signals.column import Rows
from luthier.ml.drift.signals.signal_test import Tested

_WIDTH: Final = 500
_HEIGHT: Final = 230
_FEWEST_HOURS: Final = 3
_MAX_STRENGTHS: Final = 4


def watch_charts(rows: Rows, tested: Sequence[Tested], since: float, num_signals: int) -> list[Chart]:
    """All charts in which there is something to see.

    Args:
        since: where the window begins, which is shaded.
    """
    if len(np.unique(rows.hours)) < _FEWEST_HOURS:
        return []
    charts = [_volume_chart(rows, since)]
    if (latency := _latency_chart(rows, since)) is not None:
        charts.append(latency)
    changed = [one for one in tested if one.signal.state == "changed" and len(one.hours) >= _FEWEST_HOURS]
    strongest = sorted(changed, key=lambda one: -one.log_strength[-1])[:_MAX_STRENGTHS]
    charts += [_strength_chart(one, since, num_signals) for one in strongest]
    return charts


def _volume_chart(rows: Rows, since: float) -> Chart:
    # Every hour, also those without exchanges, which count as 0.
    hours = np.arange(rows.hours[0], rows.hours[-1] + 1)
    all_, failed = np.zeros(len(hours)), np.zeros(len(hours))
    np.add.at(all_, rows.hours - hours[0], 1)
    np.add.at(failed, rows.hours - hours[0], rows.frame["status"].to_numpy() >= 400)
    text = (
        f"{len(rows.at):,} exchanges in {len(hours):,} hours, at most {number(all_.max(), 0)} in one; "
        f"{number(failed.sum(), 0)} were refused or failed."
    )
    series = [Series("all", points_of(hours / 24, all_), "base", "steps")]
    if failed.any():
        series.append(Series("refused or failed", points_of(hours / 24, failed), "tuned", "steps"))
    return report_chart(_plot("volume", "Exchanges an hour", Axis("", low=0.0), series, hours, since, text))


def _latency_chart(rows: Rows, since: float) -> Chart | None:
    seconds = np.where(rows.frame["status"].to_numpy() < 400, rows.frame["seconds"].to_numpy(), np.nan)
    hours = np.unique(rows.hours[np.isfinite(seconds)])
    if len(hours) < _FEWEST_HOURS:
        return None
    of_hour = [seconds[(rows.hours == hour) & np.isfinite(seconds)] for hour in hours]
    middle = np.array([np.quantile(values, 0.5) for values in of_hour])
    high = np.array([np.quantile(values, 0.95) for values in of_hour])
    text = f"Median {rough(float(np.median(middle)))} s; the highest 95th percentile of an hour {rough(high.max())} s."
    series = [
        Series("95th percentile", points_of(hours / 24, high), "tuned", radius_pixels=0.0),
        Series("median", points_of(hours / 24, middle), "base", radius_pixels=0.0),
    ]
    return report_chart(_plot("latency", "Latency by the hour, seconds", Axis("", low=0.0), series, hours, since, text))


def _strength_chart(tested: Tested, since: float, num_signals: int) -> Chart:
    signal = tested.signal
    # Natural logarithms to powers of ten, which are easier to read.
    needed = needed_strength(num_signals) / np.log(10)
    strength = tested.log_strength / np.log(10)
    chance = false_alarms_a_month(float(tested.log_strength[-1]), num_signals)
    text = (
        f"Evidence that this has changed, as a power of ten. Above the dashed line steady traffic comes at most "
        f"{FALSE_ALARMS_A_MONTH:g} times a month over all signals; where it stands now, {chance:.2g} times."
    )
    series = [Series("", points_of(tested.hours / 24, strength), "other-1", radius_pixels=0.0)]
    marks = [Mark(float(needed), "", "y")]
    y = Axis("", low=float(min(needed, strength.min())), high=float(max(needed, strength.max())))
    return report_chart(_plot(signal.name, signal.title, y, series, tested.hours, since, text, marks))


def _plot(
    name: str,
    title: str,
    y: Axis,
    series: Sequence[Series],
    hours: Ints,
    since: float,
    text: str,
    marks: Sequence[Mark] = (),
) -> Plot:
    """A plot over days, of which those since the window began are shaded."""
    first, last = float(hours[0]) / 24, float(hours[-1] + 1) / 24
    # The x axis counts days since 1970.
    begins = since / 86_400
    return Plot(
        f"chart-{name}",
        title,
        Axis("", low=first, high=last, ticks=_days(first, last)),
        y,
        series,
        marks=marks,
        caption=text,
        spans=[Span(max(first, begins), last)] if begins < last else (),
        width_pixels=_WIDTH,
        height_pixels=_HEIGHT,
    )


def _days(first: float, last: float) -> list[Tick]:
    """Days, or, where there are too few of them, hours."""
    step = max(1, round((last - first) / 7))
    whole = [float(day) for day in range(math.ceil(first), math.floor(last) + 1, step)]
    return [(days, _day(days)) for days in (whole if len(whole) > 1 else linear_ticks(first, last))]


def _day(days: float) -> str:
    at = datetime.fromtimestamp(days * 86_400, UTC)
    return f"{at.day} {at:%b}" if at.hour == 0 else f"{at:%H:%M}"
