"""The curves of a run: loss, learning rate, gradient norm and speed, one small chart each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.fit import Fit
from luthier.ml.charts.figures import rough
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Note, Plot, Role, Series, Span, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.report.curves import Curves, Values, smooth, smooth_window

_WIDTH: Final = 460
_HEIGHT: Final = 250


def curve_charts(curves: Curves, loss_unit: str = "", fit: Fit | None = None) -> list[Chart]:
    """The four charts of a run; none where no step was finished.

    Args:
        curves: what is drawn.
        loss_unit: empty where a loss has none.
        fit: what the losses were found to say.
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
    """Training and validation loss, the best step marked, what was learned by heart shaded."""
    series = _lines(curves.steps, curves.loss, "base", smoothed=True, name="training")
    text, notes, spans = _loss_in_words(curves), [], []
    if len(curves.validation_steps):
        points = points_of(curves.validation_steps, curves.validation_loss)
        series.append(Series("validation", points, "tuned"))
        if (best := next((point for point in points if point[0] == curves.best_step), None)) is not None:
            notes.append(Note(*best, f"best, step {curves.best_step:,}", "tuned", is_ringed=True))
    if fit is not None and fit.kind == "overfitted":
        spans.append(Span(fit.best_step, fit.last_step, "tuned"))
        text += f" Shaded: steps {fit.best_step:,} to {fit.last_step:,}, in which rows were learned by heart."
    return _plot(curves, "chart-loss", "Loss", Axis(""), series, text, True, notes, spans)


def _loss_in_words(curves: Curves) -> str:
    without = [
        name for name, is_so in (("label smoothing", curves.is_plain), ("replayed rows", curves.is_of_task)) if is_so
    ]
    which = f", without {' and '.join(without)}," if without else ""
    text = (
        f"Training loss{which} went from {curves.loss[0]:.3f} to {curves.loss[-1]:.3f} in {curves.num_steps:,} steps."
    )
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
