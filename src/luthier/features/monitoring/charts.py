"""The charts of a monitored model: each signal over its checks."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.results.signal import Signal
from luthier.features.monitoring.loop import PastCheck
from luthier.features.runs.curves import rounded
from luthier.ml.charts.spec import Axis, Mark, Plot, Point, Series

_HOUR = 3600.0


def signal_charts(signals: Sequence[Signal], past: Sequence[PastCheck]) -> list[Plot]:
    """One chart for each signal that two looks have seen a value of; what has changed comes first."""
    # False sorts before True, and the sort is stable: the rest keeps the order of the report.
    order = sorted(signals, key=lambda one: one.state != "changed")
    return [chart for one in order if (chart := _chart(one, past)) is not None]


def _chart(signal: Signal, past: Sequence[PastCheck]) -> Plot | None:
    values: list[Point] = []
    low: list[Point] = []
    high: list[Point] = []
    changed: list[Point] = []
    for look in past:
        seen = look.signals.get(signal.name)
        if seen is None or seen.value is None:
            continue
        # Negative hours before the newest check; three decimals are 4 seconds, below a pixel.
        hours = round((look.at - past[-1].at) / _HOUR, 3)
        values.append((hours, seen.value))
        if seen.low is not None and seen.high is not None:
            low.append((hours, seen.low))
            high.append((hours, seen.high))
        if seen.state == "changed":
            changed.append((hours, seen.value))
    if len(values) < 2:
        return None
    series = [Series("value", rounded(values), "tuned")]
    if len(low) > 1:
        series += [Series("95%, low", rounded(low), "quiet"), Series("95%, high", rounded(high), "quiet")]
    if changed:
        series.append(Series("changed", rounded(changed), "bad", "dots"))
    if signal.reference is not None:
        ends = [(values[0][0], signal.reference), (values[-1][0], signal.reference)]
        series.append(Series("held against", rounded(ends), "other-3"))
    since = () if signal.since is None or not changed else (Mark((signal.since - past[-1].at) / _HOUR, "since"),)
    return Plot(
        key=f"signal-{signal.name}",
        title=signal.title,
        x=Axis("hours before the last look"),
        y=Axis(signal.title.lower(), signal.unit),
        series=series,
        marks=since,
        caption=signal.sentence,
        group="signals",
    )
