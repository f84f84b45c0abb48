"""The curves of a run: loss, learning rate, gradient norm and speed, one small chart each."""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from luthier.core.fit import Fit
from luthier.ml.charts.figures import number, rough
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, MUTED, OTHERS, PAPER, TUNED, canvas, inline_svg
from luthier.ml.evaluation.report.curves import Curves, Values, smooth, smooth_window

_WIDTH: Final = 460
_HEIGHT: Final = 250


def curve_charts(curves: Curves, loss_unit: str = "", fit: Fit | None = None) -> list[Chart]:
    """The four charts of a run; none where no step was finished.

    loss_unit: empty where a loss has none. fit: what the losses were found to say.
    """
    if not len(curves.steps):
        return []
    return [
        loss_chart(curves, loss_unit, fit),
        _line_chart(curves, "learning-rate", "Learning rate", curves.learning_rate, OTHERS[0], smoothed=False),
        _line_chart(curves, "gradient-norm", "Gradient norm", curves.gradient_norm, OTHERS[1], smoothed=True),
        _line_chart(curves, "speed", "Tokens per second", curves.tokens_per_second, OTHERS[2], smoothed=True),
    ]


def loss_chart(curves: Curves, unit: str = "", fit: Fit | None = None) -> Chart:
    """Training and validation loss, the best step marked, what was learned by heart shaded."""
    with canvas(_WIDTH, _HEIGHT) as (figure, axes):
        if (shaded := fit is not None and fit.kind == "overfitted") and fit is not None:
            _shade(axes, fit)
        _line(axes, curves.steps, curves.loss, BASE, smoothed=True, label="training")
        if len(curves.validation_steps):
            axes.plot(
                curves.validation_steps, curves.validation_loss, "-o", color=TUNED, lw=1.8, ms=4, label="validation"
            )
            _mark_best(axes, curves, is_shaded=shaded)
        _finish(axes, curves)
        axes.legend(frameon=False, loc="upper right", labelcolor=MUTED, handlelength=1.4, borderaxespad=0.1)
        text = _loss_in_words(curves)
        if shaded and fit is not None:
            text += f" Shaded: steps {fit.best_step:,} to {fit.last_step:,}, in which rows were learned by heart."
        svg = inline_svg(figure, name="chart-loss", title="Loss", description=text)
    return Chart(f"Loss, {unit}" if unit else "Loss", f"{text} {_how_drawn(curves, smoothed=True)}".strip(), svg)


def _shade(axes: Axes, fit: Fit) -> None:
    """The part of the run after its best step."""
    axes.axvspan(fit.best_step, fit.last_step, color=TUNED, alpha=0.12, lw=0)


def _mark_best(axes: Axes, curves: Curves, *, is_shaded: bool) -> None:
    at = np.flatnonzero(curves.validation_steps == curves.best_step)
    if len(at):
        point = (curves.validation_steps[at[0]], curves.validation_loss[at[0]])
        axes.plot(*point, "o", ms=10, mfc="none", mec=TUNED, mew=1.6)
        late = is_shaded or point[0] > 0.75 * curves.num_steps
        axes.annotate(
            f"best, step {curves.best_step:,}",
            point,
            xytext=(0, 11),
            textcoords="offset points",
            ha="right" if late else "center",
            color=TUNED,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
        )


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


def _line_chart(curves: Curves, name: str, title: str, values: Values, colour: str, *, smoothed: bool) -> Chart:
    text = f"{title}: from {rough(values[0])} to {rough(values[-1])}, {_extremes(values)}."
    with canvas(_WIDTH, _HEIGHT) as (figure, axes):
        _line(axes, curves.steps, values, colour, smoothed=smoothed)
        axes.set_ylim(bottom=0)
        _finish(axes, curves)
        svg = inline_svg(figure, name=f"chart-{name}", title=title, description=text)
    return Chart(title, f"{text.removeprefix(f'{title}: ').capitalize()} {_how_drawn(curves, smoothed)}".strip(), svg)


def _extremes(values: Values) -> str:
    return f"lowest {rough(values.min())}, highest {rough(values.max())}"


def _line(axes: Axes, steps: Values, values: Values, colour: str, *, smoothed: bool, label: str | None = None) -> None:
    window = smooth_window(len(values)) if smoothed else 1
    marker = "o" if len(values) < 12 else ""
    if window > 1:
        axes.plot(steps, values, color=colour, lw=0.8, alpha=0.45)
        values = smooth(values, window)
    axes.plot(steps, values, color=colour, lw=1.8, marker=marker, ms=3.5, label=label)


def _finish(axes: Axes, curves: Curves) -> None:
    axes.grid(axis="y")
    axes.set_xlabel("step")
    axes.set_xlim(0, max(curves.num_steps, 1) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 0)))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}" if value >= 1e-3 else f"{value:.2g}"))


def _how_drawn(curves: Curves, smoothed: bool) -> str:
    parts = []
    if curves.steps_a_point > 1:
        parts.append(f"Each point is the mean of {curves.steps_a_point} steps.")
    window = smooth_window(len(curves.steps))
    if smoothed and window > 1:
        parts.append(f"Thick line: mean of {window} neighbouring points.")
    return " ".join(parts)
