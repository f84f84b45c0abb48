"""A learning curve as a picture: runs as points, the law with its band, what is extrapolated drawn apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from luthier.core.workflows.learning_curve import LearningCurve
from luthier.ml.charts.chart_file import write_chart
from luthier.ml.charts.figures import count
from luthier.ml.charts.svg import BASE, MUTED, TUNED, canvas
from luthier.ml.planning.learning_curve import curve_band

_WIDTH: Final = 620
_HEIGHT: Final = 360
_BEYOND: Final = 4.0
_CLOSEST: Final = 0.85


def write_learning_curve_chart(path: Path, curve: LearningCurve) -> None:
    """Validation loss against training rows, both measured and expected up to four times the rows.

    Raises RequestError where the file cannot be written to, or where no run has come to its end.
    """
    sizes = np.array([float(point.num_rows) for point in curve.points])
    losses = np.array([point.loss for point in curve.points])
    title = "Validation loss by training rows"
    with canvas(_WIDTH, _HEIGHT) as (figure, axes):
        if curve.fit is not None:
            rows = np.geomspace(sizes.min(), sizes.max() * _BEYOND, 200)
            middle, low, high = curve_band(curve.points, rows)
            inside = rows <= sizes.max()
            axes.fill_between(rows, low, high, color=TUNED, alpha=0.14, lw=0)
            axes.plot(rows[inside], middle[inside], color=TUNED, lw=1.8, label="power law, 95% band")
            axes.plot(rows[~inside], middle[~inside], color=TUNED, lw=1.8, ls=(0, (4, 3)), label="expected beyond")
            # a band that is wide far out must not press the points flat
            room = 0.6 * (losses.max() - losses.min()) + 0.02 * losses.max()
            axes.set_ylim(max(0.0, min(middle.min(), losses.min()) - room), losses.max() + room)
        axes.plot(sizes, losses, "o", color=BASE, ms=5.5, label="runs", clip_on=False)
        axes.set_xscale("log")
        axes.set_xticks(_apart([*sizes.tolist(), *([sizes.max() * 2, sizes.max() * 4] if curve.fit else [])]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        axes.set_xlabel("training rows")
        axes.set_ylabel("nats a learned token")
        axes.set_title(title, loc="left")
        axes.legend(frameon=False, labelcolor=MUTED, loc="upper right")
        words = curve.fit.words if curve.fit else "too few runs for a law"
        write_chart(figure, path, name="learning-curve", title=title, description=f"{len(sizes)} runs; {words}.")


def _apart(sizes: Sequence[float]) -> list[float]:
    """The sizes, the larger of those that stand too close together for two labels."""
    shown: list[float] = []
    for size in sorted(sizes, reverse=True):
        if not shown or size < _CLOSEST * shown[-1]:
            shown.append(size)
    return shown[::-1]
