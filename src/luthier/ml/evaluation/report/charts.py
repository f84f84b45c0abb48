"""Charts of a run: loss, learning rate, gradient norm, speed, measures of the objective, and ranks of AdaLoRA.

The events of a run become lines, one small chart each. Ranks are shown with one cell per matrix, kinds down and layers
across.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.events import PLAIN_LOSS, TASK_LOSS, Event, StepDone, ValidationDone, comparable_loss
from luthier.core.registry import OBJECTIVES
from luthier.core.run import Fit
from luthier.core.text.counted import counted
from luthier.ml.charts.figures import rough
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Cell, Matrix, Note, Plot, Role, Series, Span, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.verdict_text import listed

MAX_POINTS: Final = 400
_SMOOTH_SHARE: Final = 0.05

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curves:
    """The data of the curves, each against the optimizer step.

    Attributes:
        steps: last step of each point.
        loss: training loss.
        learning_rate: mean of a point.
        gradient_norm: mean of a point.
        tokens_per_second: of a whole point.
        steps_a_point: number of steps averaged per point.
        validation_steps: steps that were validated.
        validation_loss: one value per validated step.
        best_step: step of the best validation; None if there was none.
        is_plain: the training loss is shown without what label smoothing adds, as the validation loss is.
        is_of_task: it is that of the task's rows, without replayed ones.
    """

    steps: Values
    loss: Values
    learning_rate: Values
    gradient_norm: Values
    tokens_per_second: Values
    steps_a_point: int
    validation_steps: Values
    validation_loss: Values
    best_step: int | None
    is_plain: bool = False
    is_of_task: bool = False

    @property
    def num_steps(self) -> int:
        """The last step; 0 if none was finished."""
        return int(self.steps[-1]) if len(self.steps) else 0


def curves(events: Sequence[Event], max_points: int = MAX_POINTS) -> Curves:
    """The curves of a run. For a step that was trained twice (a resumed run) the later one counts."""
    steps = sorted({e.step: e for e in events if isinstance(e, StepDone)}.values(), key=lambda e: e.step)
    validations = sorted({e.step: e for e in events if isinstance(e, ValidationDone)}.values(), key=lambda e: e.step)
    # Ceiling: never more points than a chart can show.
    per_point = max(1, -(-len(steps) // max_points))
    tokens = _array([e.num_tokens for e in steps])
    seconds = _array([e.seconds for e in steps])
    best = [e.step for e in validations if e.is_best]
    starts = np.arange(0, len(steps), per_point)
    return Curves(
        # A point is drawn at the last of its steps; the last point may have fewer.
        steps=_array([e.step for e in steps])[np.minimum(starts + per_point - 1, len(steps) - 1)],
        loss=_means(_array([comparable_loss(e) for e in steps]), per_point),
        is_plain=any(PLAIN_LOSS in e.measures for e in steps),
        is_of_task=any(TASK_LOSS in e.measures for e in steps),
        learning_rate=_means(_array([e.learning_rate for e in steps]), per_point),
        gradient_norm=_means(_array([e.gradient_norm for e in steps]), per_point),
        # Total tokens over total seconds of a point: a mean of rates would overweight short steps.
        tokens_per_second=_sums(tokens, per_point) / np.maximum(_sums(seconds, per_point), 1e-9),
        steps_a_point=per_point,
        validation_steps=_array([e.step for e in validations]),
        validation_loss=_array([e.loss for e in validations]),
        best_step=best[-1] if best else None,
    )


def smooth_window(num_points: int) -> int:
    """The smoothing window in points: a twentieth of them, odd; 1 (no smoothing) for short runs."""
    # Odd, so that the window has a middle.
    return 2 * int(num_points * _SMOOTH_SHARE / 2) + 1


def smooth(values: Values, window: int) -> Values:
    """The mean of the `window` points around each one; fewer at both ends."""
    reach = window // 2
    # Fewer points at the ends, rather than values that were never measured.
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])


def _array(values: Sequence[float]) -> Values:
    return np.array(values, dtype=np.float64)


def _sums(values: Values, per_point: int) -> Values:
    # reduceat sums each run of per_point values; the last run may be shorter.
    return np.add.reduceat(values, np.arange(0, len(values), per_point)) if len(values) else values


def _means(values: Values, per_point: int) -> Values:
    return _sums(values, per_point) / _sums(np.ones_like(values), per_point) if len(values) else values


_WIDTH: Final = 460
_HEIGHT: Final = 250


def curve_charts(curves: Curves, loss_unit: str = "", fit: Fit | None = None) -> list[Chart]:
    """The four charts of a run; empty if no step was finished.

    Args:
        curves: what is drawn.
        loss_unit: empty if the loss has none.
        fit: the diagnosis of the losses.
    """
    if not len(curves.steps):
        return []
    loss = loss_plot(curves, fit)
    return [
        report_chart(loss, heading=f"Loss, {loss_unit}" if loss_unit else "Loss"),
        _line_chart(curves, "learning-rate", "Learning rate", curves.learning_rate, "other-1", smoothed=False),
        _line_chart(curves, "gradient-norm", "Gradient norm", curves.gradient_norm, "other-2", smoothed=True),
        _line_chart(curves, "speed", "Tokens per second", curves.tokens_per_second, "other-3", smoothed=True),
    ]


def loss_plot(curves: Curves, fit: Fit | None = None) -> Plot:
    """Training and validation loss, with the best step marked and overfitting shaded."""
    series = _lines(curves.steps, curves.loss, "base", smoothed=True, name="training")
    text, notes, spans = _loss_in_words(curves), [], []
    if len(curves.validation_steps):
        points = points_of(curves.validation_steps, curves.validation_loss)
        series.append(Series("validation", points, "tuned"))
        if (best := next((point for point in points if point[0] == curves.best_step), None)) is not None:
            notes.append(Note(*best, f"best, step {curves.best_step:,}", "tuned", is_ringed=True))
    if fit is not None and fit.kind == "overfitted":
        spans.append(Span(fit.best_step, fit.last_step, "tuned"))
        text += f" Shaded: steps {fit.best_step:,} to {fit.last_step:,}, in which it memorised its rows."
    return _plot(curves, "chart-loss", "Loss", Axis(""), series, text, True, notes, spans)


def _loss_in_words(curves: Curves) -> str:
    without = [
        name for name, is_so in (("label smoothing", curves.is_plain), ("replayed rows", curves.is_of_task)) if is_so
    ]
    which = f", without {' and '.join(without)}," if without else ""
    steps = counted(curves.num_steps, "step")
    text = f"Training loss{which} went from {curves.loss[0]:.3f} to {curves.loss[-1]:.3f} in {steps}."
    if not len(curves.validation_steps):
        return f"{text} There was no validation."
    words = f"{text} Validation loss went from {curves.validation_loss[0]:.3f} to {curves.validation_loss[-1]:.3f}"
    return f"{words}; its best was {curves.validation_loss.min():.3f}, at step {curves.best_step or 0:,}."


def _line_chart(curves: Curves, name: str, title: str, values: Values, role: Role, *, smoothed: bool) -> Chart:
    words = f"from {rough(values[0])} to {rough(values[-1])}, {_extremes(values)}."
    lines = _lines(curves.steps, values, role, smoothed=smoothed)
    return report_chart(_plot(curves, f"chart-{name}", title, Axis("", low=0.0), lines, words.capitalize(), smoothed))


def _plot(
    curves: Curves,
    key: str,
    title: str,
    y: Axis,
    series: Sequence[Series],
    text: str,
    smoothed: bool,
    notes: Sequence[Note] = (),
    spans: Sequence[Span] = (),
) -> Plot:
    return Plot(
        key,
        title,
        Axis("step", low=0.0, high=float(max(curves.num_steps, 1))),
        y,
        series,
        caption=f"{text} {_how_drawn(curves, smoothed)}".strip(),
        description=text,
        notes=notes,
        spans=spans,
        width_pixels=_WIDTH,
        height_pixels=_HEIGHT,
    )


def _extremes(values: Values) -> str:
    return f"lowest {rough(values.min())}, highest {rough(values.max())}"


def _lines(steps: Values, values: Values, role: Role, *, smoothed: bool, name: str = "") -> list[Series]:
    window = smooth_window(len(values)) if smoothed else 1
    if window == 1:
        return [Series(name, points_of(steps, values), role)]
    # The raw values stay visible behind the smoothed line: it hides spikes.
    behind = Series("", points_of(steps, values), role, is_faint=True)
    return [behind, Series(name, points_of(steps, smooth(values, window)), role)]


def _how_drawn(curves: Curves, smoothed: bool) -> str:
    parts = []
    if curves.steps_a_point > 1:
        parts.append(f"Each point is the mean of {curves.steps_a_point} steps.")
    window = smooth_window(len(curves.steps))
    if smoothed and window > 1:
        parts.append(f"Thick line: mean of {window} neighbouring points.")
    return " ".join(parts)


_SIDES: Final = ("chosen", "rejected")


def measure_charts(events: Sequence[Event], objective: str) -> list[Chart]:
    """A chart for each measure to which the objective gives a title, with training and, dashed, validation.

    Args:
        events: of the run.
        objective: its name; one that is no longer installed gives no titles.
    """
    rules = OBJECTIVES.find(objective)
    titles: Mapping[str, str] = {} if rules is None else rules.measures
    steps = sorted({e.step: e for e in events if isinstance(e, StepDone)}.values(), key=lambda e: e.step)
    checks = sorted({e.step: e for e in events if isinstance(e, ValidationDone)}.values(), key=lambda e: e.step)
    names = dict.fromkeys(name for step in steps for name in step.measures)
    groups: dict[str, list[str]] = {}
    for name in names:
        # `chosen_reward` and `rejected_reward` share one chart.
        side, _, rest = name.partition("_")
        groups.setdefault(rest if side in _SIDES else name, []).append(name)
    return [
        _chart(group, titles[group], members, steps, checks) for group, members in groups.items() if group in titles
    ]


def _chart(
    group: str, title: str, names: Sequence[str], steps: Sequence[StepDone], checks: Sequence[ValidationDone]
) -> Chart:
    roles: tuple[Role, ...] = ("tuned", "base") if len(names) > 1 else ("other-1",)
    series, words = [], []
    for name, role in zip(names, roles, strict=False):
        side = name.partition("_")[0] if len(names) > 1 else "training"
        at, values = measured_points(steps, name)
        series.append(Series(side, points_of(at, values), role))
        words.append(f"{side} {_course(values)}")
        at, values = measured_points(checks, name)
        if len(values):
            label = "validation" if len(names) == 1 else f"{side}, validation"
            series.append(Series(label, points_of(at, values), role, is_dashed=True, is_open=True))
            words.append(f"{label} {_course(values)}")
    text = f"{'; '.join(words).capitalize()}."
    chart = Plot(
        f"chart-{group.replace('_', '-')}",
        title,
        Axis("step"),
        Axis(""),
        series,
        caption=text,
        width_pixels=_WIDTH,
        height_pixels=_HEIGHT,
    )
    return report_chart(chart)


def _course(values: Values) -> str:
    """The range of values; values that are only rounding errors become 0."""
    # Rounding keeps a mean from being exactly 0; it would be shown as a number such as 3e-9.
    smallest = 1e-4 * float(np.abs(values).max())
    first, last = (rough(0.0 if abs(value) < smallest else value) for value in (values[0], values[-1]))
    return f"from {first} to {last}"


def measured_points(events: Sequence[StepDone] | Sequence[ValidationDone], name: str) -> tuple[Values, Values]:
    """Steps and values, downsampled for a chart: each point is the mean of its neighbours."""
    found = [(event.step, event.measures[name]) for event in events if name in event.measures]
    size = max(1, -(-len(found) // MAX_POINTS))
    parts = [np.array(found[i : i + size], dtype=np.float64) for i in range(0, len(found), size)]
    return np.array([part[-1, 0] for part in parts]), np.array([part[:, 1].mean() for part in parts])


_RANK_WIDTH: Final = 940

Grid = dict[str, dict[int, float]]


def rank_charts(ranks: Mapping[str, int]) -> list[Chart]:
    """A heat map of the ranks by module name; empty without ranks in numbered layers."""
    grid = rank_grid(ranks)
    if not grid:
        return []
    layers = sorted({layer for row in grid.values() for layer in row})
    most = max(rank for row in grid.values() for rank in row.values()) or 1.0
    cells = [
        [Cell(row[layer] / most, f"{row[layer]:.3g}") if layer in row else None for layer in layers]
        for row in grid.values()
    ]
    chart = Matrix(
        "chart-ranks",
        "Rank of each matrix",
        Axis("layer"),
        Axis(""),
        [str(layer) for layer in layers],
        list(grid),
        cells,
        caption=_in_words(ranks),
        width_pixels=_RANK_WIDTH,
    )
    return [report_chart(chart, heading="Rank of each matrix at the end")]


def rank_grid(ranks: Mapping[str, int]) -> Grid:
    """kind -> layer -> rank; the mean if a layer has several matrices of a kind, such as experts."""
    found: dict[str, dict[int, list[int]]] = {}
    for name, rank in ranks.items():
        # The first number between dots is the layer; a later one is an expert.
        number = re.search(r"\.(\d+)\.", name)
        if number is not None:
            found.setdefault(name.rpartition(".")[2], {}).setdefault(int(number[1]), []).append(rank)
    return {kind: {at: sum(rs) / len(rs) for at, rs in row.items()} for kind, row in found.items()}


def _in_words(ranks: Mapping[str, int]) -> str:
    total, most = sum(ranks.values()), max(ranks.values())
    means = {kind: sum(row.values()) / len(row) for kind, row in rank_grid(ranks).items()}
    order = sorted(means, key=lambda kind: -means[kind])
    off = sum(rank == 0 for rank in ranks.values())
    text = f"{total:,} ranks over {len(ranks):,} matrices, {total / len(ranks):.3g} on average, {most} at most"
    text += f"; {off} {'matrix has' if off == 1 else 'matrices have'} none" if off else ""
    if len(order) > 1:
        named = [f"{kind} {means[kind]:.3g}" for kind in order]
        text += f". On average by kind: {listed(named)}"
    return f"{text}."
