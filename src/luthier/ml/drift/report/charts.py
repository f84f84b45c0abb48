"""The pictures of a look: traffic and latency by the hour, and how strong the evidence of each change has become."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from luthier.ml.charts.figures import number, rough
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, MUTED, OTHERS, RULE, TUNED, canvas, inline_svg
from luthier.ml.drift.drift.evidence import FALSE_ALARMS_A_MONTH, false_alarms_a_month, needed_strength
from luthier.ml.drift.drift.ranks import Floats, Ints
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
    hours = np.arange(rows.hours[0], rows.hours[-1] + 1)
    all_, failed = np.zeros(len(hours)), np.zeros(len(hours))
    np.add.at(all_, rows.hours - hours[0], 1)
    np.add.at(failed, rows.hours - hours[0], rows.frame["status"].to_numpy() >= 400)
    text = (
        f"{len(rows.at):,} exchanges in {len(hours):,} hours, at most {number(all_.max(), 0)} in one; "
        f"{number(failed.sum(), 0)} were refused or failed."
    )
    with canvas(_WIDTH, _HEIGHT) as (figure, axes):
        axes.step(_days(hours), all_, color=BASE, lw=1.3, where="post", label="all")
        if failed.any():
            axes.step(_days(hours), failed, color=TUNED, lw=1.3, where="post", label="refused or failed")
        _legend(axes)
        _finish(axes, hours, since)
        axes.set_ylim(bottom=0)
        svg = inline_svg(figure, name="chart-volume", title="Exchanges an hour", description=text)
    return Chart("Exchanges an hour", text, svg)


def _latency_chart(rows: Rows, since: float) -> Chart | None:
    seconds = np.where(rows.frame["status"].to_numpy() < 400, rows.frame["seconds"].to_numpy(), np.nan)
    hours = np.unique(rows.hours[np.isfinite(seconds)])
    if len(hours) < _FEWEST_HOURS:
        return None
    of_hour = [seconds[(rows.hours == hour) & np.isfinite(seconds)] for hour in hours]
    middle = np.array([np.quantile(values, 0.5) for values in of_hour])
    high = np.array([np.quantile(values, 0.95) for values in of_hour])
    text = f"Median {rough(float(np.median(middle)))} s; the highest 95th percentile of an hour {rough(high.max())} s."
    with canvas(_WIDTH, _HEIGHT) as (figure, axes):
        axes.plot(_days(hours), high, color=TUNED, lw=1.2, label="95th percentile")
        axes.plot(_days(hours), middle, color=BASE, lw=1.4, label="median")
        _legend(axes)
        _finish(axes, hours, since)
        axes.set_ylim(bottom=0)
        svg = inline_svg(figure, name="chart-latency", title="Latency by the hour, seconds", description=text)
    return Chart("Latency by the hour, seconds", text, svg)


def _strength_chart(tested: Tested, since: float, num_signals: int) -> Chart:
    signal = tested.signal
    needed = needed_strength(num_signals) / np.log(10)
    strength = tested.log_strength / np.log(10)
    chance = false_alarms_a_month(float(tested.log_strength[-1]), num_signals)
    text = (
        f"Evidence that this has changed, as a power of ten. Above the dashed line steady traffic comes at most "
        f"{FALSE_ALARMS_A_MONTH:g} times a month over all signals; where it stands now, {chance:.2g} times."
    )
    with canvas(_WIDTH, _HEIGHT) as (figure, axes):
        axes.plot(_days(tested.hours), strength, color=OTHERS[0], lw=1.6)
        axes.axhline(needed, color=MUTED, lw=1.0, ls=(0, (4, 3)))
        _finish(axes, tested.hours, since)
        svg = inline_svg(figure, name=f"chart-{signal.name}", title=signal.title, description=text)
    return Chart(signal.title, text, svg)


def _days(hours: Ints) -> Floats:
    return hours / 24.0


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="upper left", labelcolor=MUTED, handlelength=1.4, borderaxespad=0.1, ncols=2)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))


def _finish(axes: Axes, hours: Ints, since: float) -> None:
    axes.grid(axis="y")
    first, last = hours[0] / 24, (hours[-1] + 1) / 24
    axes.set_xlim(first, last)
    if since / 86_400 < last:
        axes.axvspan(max(first, since / 86_400), last, color=RULE, alpha=0.35, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _day(value)))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def _day(days: float) -> str:
    at = datetime.fromtimestamp(days * 86_400, UTC)
    return f"{at.day} {at:%b}" if at.hour == 0 else f"{at:%H:%M}"
