"""The charts of a run and of runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, get_args

from luthier.core.graders import RewardMetric
from luthier.features.runs.series import GRADIENT_NORM, LEARNING_RATE, TOKENS_PER_SECOND, Curves, Key
from luthier.ml.charts.spec import Axis, Mark, Plot, Point, Role, Series

STEP: Final = Axis("step")
FIRST_POINTS: Final = 160
"""A series, for what is painted before anything else: enough for a drawing of the server."""
_TITLES: Final = {
    "loss": "Loss",
    LEARNING_RATE[0]: "Learning rate",
    GRADIENT_NORM[0]: "Gradient norm",
    TOKENS_PER_SECOND[0]: "Tokens a second",
}
_ROLES: Final[dict[str, Role]] = {
    "training": "tuned",
    "validation": "other-1",
    "minimised": "quiet",
    "replayed rows": "other-3",
}
_OF_RUNS: Final[tuple[Role, ...]] = ("tuned", "other-1", "other-2", "other-3", "base", "good")
MOST_COMPARED: Final = len(_OF_RUNS)
"""Each run has a colour of its own."""


def run_charts(curves: Curves, loss_unit: str) -> list[Plot]:
    """Loss first, then rate, norm and speed, then each measure. loss_unit: empty where loss has none."""
    by_chart: dict[str, list[Series]] = {name: [] for name in _TITLES}
    order = list(_ROLES)
    for (chart, name), points in sorted(curves.points.items(), key=lambda item: _place(item[0], order)):
        role = _ROLES.get(name, "other-2")
        by_chart.setdefault(chart, []).append(Series(name, rounded(points), role))
    return [
        Plot(
            key=chart,
            title=_TITLES.get(chart) or chart.replace("_", " ").capitalize(),
            x=STEP,
            y=Axis(_TITLES.get(chart, chart.replace("_", " ")).lower(), loss_unit if chart == "loss" else _unit(chart)),
            series=series,
            marks=best_marks(curves) if chart == "loss" else (),
            group="run",
            tools=chart not in (LEARNING_RATE[0],),
        )
        for chart, series in by_chart.items()
    ]


def _unit(chart: str) -> str:
    """Of the reward that a metric gives: always from 0 to 1, where evaluation counts BLEU and chrF from 0 to 100."""
    return "0 to 1" if chart.removeprefix("reward_") in get_args(RewardMetric) and chart.startswith("reward_") else ""


def layout_of(curves: Curves) -> str:
    """Which series there are: where a watcher has other ones, its charts are to be made again."""
    return ",".join(sorted("/".join(key) for key in curves.points))


def best_marks(curves: Curves) -> tuple[Mark, ...]:
    """Where the validation loss was lowest."""
    return () if curves.best is None else (Mark(curves.best[0], "best"),)


def overlaid(curves: Mapping[str, Curves], key: Key, chart: str, title: str, unit: str) -> Plot:
    """One series of several runs in one chart, a colour a run. chart: its key."""
    series = [
        Series(run_id, rounded(one.points.get(key, [])), role)
        for (run_id, one), role in zip(curves.items(), _OF_RUNS, strict=False)
    ]
    return Plot(chart, title, STEP, Axis(title.lower(), unit), series, group="compare", tools=True)


def role_of(number: int) -> Role:
    """The colour of the run with this number, from 0 on."""
    return _OF_RUNS[number]


def rounded(points: Sequence[Point]) -> list[Point]:
    """Values to five significant digits, more than a chart shows, in half the bytes."""
    return [(step, float(f"{value:.5g}")) for step, value in points]


def _place(key: Key, order: Sequence[str]) -> tuple[str, int]:
    return key[0], order.index(key[1]) if key[1] in order else len(order)
