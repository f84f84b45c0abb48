"""A learning curve as a picture: runs as points, the law with its band, what is extrapolated drawn apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from luthier.core.workflows.learning_curve import LearningCurve
from luthier.ml.charts.chart_file import write_chart
from luthier.ml.charts.figures import count
from luthier.ml.charts.spec import Axis, Plot, Series, points_of
from luthier.ml.planning.learning_curve import curve_band

_WIDTH: Final = 620
_HEIGHT: Final = 360
_BEYOND: Final = 4.0
_CLOSEST: Final = 0.85


def write_learning_curve_chart(path: Path, curve: LearningCurve) -> None:
    """Validation loss against training rows, both measured and expected up to four times the rows.

    Raises:
        RequestError: the file cannot be written to, or where no run has ended.
    """
    sizes = np.array([float(point.num_rows) for point in curve.points])
    losses = np.array([point.loss for point in curve.points])
    series, y = [], Axis("nats a learned token")
    if curve.fit is not None:
        # Evenly spread on the logarithmic axis.
        rows = np.geomspace(sizes.min(), sizes.max() * _BEYOND, 200)
        middle, low, high = curve_band(curve.points, rows)
        inside = rows <= sizes.max()
        for is_known, name in ((inside, "power law, 95% band"), (~inside, "expected beyond")):
            points, band = points_of(rows[is_known], middle[is_known]), points_of(low[is_known], high[is_known])
            series.append(Series(name, points, intervals=band, is_dashed=name == "expected beyond"))
        # a band that is wide far out must not press the points flat
        room = 0.6 * float(losses.max() - losses.min()) + 0.02 * float(losses.max())
        least = max(0.0, float(min(middle.min(), losses.min())) - room)
        y = Axis("nats a learned token", low=least, high=float(losses.max()) + room)
    series.append(Series("runs", points_of(sizes, losses), "base", "dots", radius_pixels=4.0))
    ends = [*sizes.tolist(), *([sizes.max() * 2, sizes.max() * 4] if curve.fit else [])]
    words = curve.fit.words if curve.fit else "too few runs for a law"
    chart = Plot(
        "learning-curve",
        "Validation loss by training rows",
        Axis("training rows", scale="log", ticks=[(value, count(round(value))) for value in _apart(ends)]),
        y,
        series,
        description=f"{len(sizes)} runs; {words}.",
        width_pixels=_WIDTH,
        height_pixels=_HEIGHT,
    )
    write_chart(chart, path)


def _apart(sizes: Sequence[float]) -> list[float]:
    """The sizes, the larger of those that stand too close together for two labels."""
    shown: list[float] = []
    for size in sorted(sizes, reverse=True):
        if not shown or size < _CLOSEST * shown[-1]:
            shown.append(size)
    return shown[::-1]
