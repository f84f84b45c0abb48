"""Figures that an objective reports beside the loss: one small chart each, chosen and rejected in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from luthier.core.events import Event, StepDone, ValidationDone
from luthier.ml.charts.figures import rough
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Plot, Role, Series, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.report.curves import MAX_POINTS, Values

_WIDTH: Final = 460
_HEIGHT: Final = 250
_TITLES: Final = {
    "reward_accuracy": "Reward accuracy, share of examples",
    "reward_margin": "Reward margin",
    "reward": "Rewards",
    "log_probability": "Log-probability of a completion, nats",
    "kl": "Distance from the start (KL estimate), nats a completion",
    "nll_loss": "Loss, the part of cross-entropy",
    "odds_ratio_loss": "Loss, the part of the odds ratio",
}
_SIDES: Final = ("chosen", "rejected")


def measure_charts(events: Sequence[Event]) -> list[Chart]:
    """A chart for each measure of a preference objective, with training and, dashed, validation."""
    steps = sorted({e.step: e for e in events if isinstance(e, StepDone)}.values(), key=lambda e: e.step)
    checks = sorted({e.step: e for e in events if isinstance(e, ValidationDone)}.values(), key=lambda e: e.step)
    names = dict.fromkeys(name for step in steps for name in step.measures)
    groups: dict[str, list[str]] = {}
    for name in names:
        side, _, rest = name.partition("_")
        groups.setdefault(rest if side in _SIDES else name, []).append(name)
    return [_chart(group, members, steps, checks) for group, members in groups.items() if group in _TITLES]


def _chart(group: str, names: Sequence[str], steps: Sequence[StepDone], checks: Sequence[ValidationDone]) -> Chart:
    roles: tuple[Role, ...] = ("tuned", "base") if len(names) > 1 else ("other-1",)
    series, words = [], []
    for name, role in zip(names, roles, strict=False):
        side = name.partition("_")[0] if len(names) > 1 else "training"
        at, values = _points(steps, name)
        series.append(Series(side, points_of(at, values), role))
        words.append(f"{side} {_course(values)}")
        at, values = _points(checks, name)
        if len(values):
            label = "validation" if len(names) == 1 else f"{side}, validation"
            series.append(Series(label, points_of(at, values), role, is_dashed=True, is_open=True))
            words.append(f"{label} {_course(values)}")
    text = f"{'; '.join(words).capitalize()}."
    chart = Plot(
        f"chart-{group.replace('_', '-')}",
        _TITLES[group],
        Axis("step"),
        Axis(""),
        series,
        caption=text,
        width_pixels=_WIDTH,
        height_pixels=_HEIGHT,
    )
    return report_chart(chart)


def _course(values: Values) -> str:
    """From where to where; what is nothing but rounding beside the other values is 0."""
    # Rounding keeps a mean from being exactly 0; it would be shown as a number such as 3e-9.
    smallest = 1e-4 * float(np.abs(values).max())
    first, last = (rough(0.0 if abs(value) < smallest else value) for value in (values[0], values[-1]))
    return f"from {first} to {last}"


def _points(events: Sequence[StepDone] | Sequence[ValidationDone], name: str) -> tuple[Values, Values]:
    """Steps and values, thinned to what a chart can show: each point is the mean of its neighbours."""
    found = [(event.step, event.measures[name]) for event in events if name in event.measures]
    size = max(1, -(-len(found) // MAX_POINTS))
    parts = [np.array(found[i : i + size], dtype=np.float64) for i in range(0, len(found), size)]
    return np.array([part[-1, 0] for part in parts]), np.array([part[:, 1].mean() for part in parts])
