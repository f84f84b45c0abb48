"""The pictures of a study: the best loss as hours were spent, what mattered, each parameter, and all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from matplotlib.ticker import FuncFormatter, NullFormatter

from luthier.core.workflows.study import Parameter, Study, Trial
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, INK, MUTED, OTHERS, TUNED, canvas, inline_svg
from luthier.ml.search.report.front_charts import front_charts
from luthier.ml.search.scales import ends_of, height_of, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH: Final = 480
_COLOURS: Final = (BASE, OTHERS[0], TUNED)
"""Of the first, the middle and the last rung."""


def study_charts(study: Study, trials: Sequence[Trial], importances: Mapping[str, float]) -> list[Chart]:
    """All pictures that there is something to draw for, the most telling first."""
    searched = [trial for trial in trials if trial.kind == "search" and trial.results]
    found = [_progress(study, searched), *front_charts(study, trials)]
    if importances:
        found.append(_importances(importances))
    drawn = [p for p in study.spec.space.parameters if not p.is_fixed and sum(p.name in t.values for t in searched) > 2]
    found += [_slice(study, parameter, searched) for parameter in drawn]
    if len(drawn) > 2 and len(searched) > 3:
        found.append(_parallel(drawn, searched))
    return found


def _colour(study: Study, rung: int) -> str:
    last = len(study.spec.rungs) - 1
    return _COLOURS[-1] if rung == last else _COLOURS[0] if rung == 0 else _COLOURS[1]


def _progress(study: Study, trials: Sequence[Trial]) -> Chart:
    """Every loss on its rung when it was known, and the lowest on the last rung so far."""
    points = sorted((r.study_hours, r.rung, r.loss) for trial in trials for r in trial.results)
    last = len(study.spec.rungs) - 1
    with canvas(_WIDTH, 280) as (figure, axes):
        for rung in range(last + 1):
            own = [(hours, loss) for hours, r, loss in points if r == rung]
            label = f"after {study.spec.rungs[rung]:.2g} of a training" if rung < last else "after a whole training"
            axes.plot([h for h, _ in own], [x for _, x in own], "o", ms=4.5, color=_colour(study, rung), label=label)
        top = [(hours, loss) for hours, rung, loss in points if rung == last]
        best = [min(loss for _, loss in top[: i + 1]) for i in range(len(top))]
        axes.step([h for h, _ in top], best, where="post", color=TUNED, lw=1.6)
        axes.set_xlabel("hours spent")
        axes.set_ylabel("validation loss")
        axes.grid(axis="y")
        axes.legend(frameon=False, labelcolor=MUTED, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=1)
        words = f"{len(points)} measurements; the lowest loss after a whole training is {best[-1]:.4f}." if best else ""
        svg = inline_svg(figure, name="study-progress", title="Loss as hours were spent", description=words)
    return Chart("Loss as hours were spent", "A dot for each trial on each rung; the line is the best so far.", svg)


def _importances(found: Mapping[str, float]) -> Chart:
    names = list(found)[::-1]
    with canvas(_WIDTH, 60 + 22 * len(names)) as (figure, axes):
        axes.barh([short_name(name) for name in names], [found[name] for name in names], color=TUNED, height=0.6)
        axes.set_xlabel("share of what decides between the best quarter and all")
        words = "; ".join(f"{short_name(name)} {share:.2f}" for name, share in found.items())
        svg = inline_svg(figure, name="study-importance", title="What mattered", description=words)
    caption = "By PED-ANOVA on the first rung, which all trials have reached; what only pays later looks small here."
    return Chart("What mattered", caption, svg)


def _slice(study: Study, parameter: Parameter, trials: Sequence[Trial]) -> Chart:
    """Loss against one parameter; of choices each has its place."""
    own = [trial for trial in trials if parameter.name in trial.values]
    short = short_name(parameter.name)
    with canvas(_WIDTH, 240) as (figure, axes):
        if parameter.kind == "choice":
            places = {value: place for place, value in enumerate(parameter.choices)}
            axes.set_xticks(
                range(len(places)), [f"{value:g}" if isinstance(value, float) else str(value) for value in places]
            )
            axes.set_xlim(-0.6, len(places) - 0.4)
            across = [float(places.get(trial.values[parameter.name], 0)) for trial in own]
        else:
            across = [float(trial.values[parameter.name]) for trial in own]
            if parameter.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
        for trial, x in zip(own, across, strict=True):
            axes.plot(x, trial.results[-1].loss, "o", ms=5, color=_colour(study, trial.rung))
        axes.set_xlabel(short)
        axes.set_ylabel("loss")
        axes.grid(axis="y")
        best = min(own, key=lambda t: (-t.rung, t.results[-1].loss))
        words = f"{len(own)} trials; the best has {short} {best.values[parameter.name]}."
        svg = inline_svg(figure, name=f"study-slice-{short}", title=short, description=words)
    return Chart(short, parameter.why, svg)


def _parallel(parameters: Sequence[Parameter], trials: Sequence[Trial]) -> Chart:
    """One line a trial over all parameters, each scaled to its own range; the best third stands out."""
    order = sorted(trials, key=lambda t: (-t.rung, t.results[-1].loss))
    with canvas(_WIDTH, 280) as (figure, axes):
        for place, trial in reversed(list(enumerate(order))):
            is_good = place < max(1, len(order) // 3)
            points = [(x, height_of(p, trial.values)) for x, p in enumerate(parameters)]
            there = [(x, y) for x, y in points if y is not None]
            axes.plot(
                [x for x, _ in there],
                [y for _, y in there],
                color=TUNED if is_good else MUTED,
                lw=1.6 if is_good else 0.7,
                alpha=0.85 if is_good else 0.4,
            )
        _name_axes(axes, parameters)
        words = f"{len(order)} trials over {len(parameters)} parameters; the best third is drawn in colour."
        svg = inline_svg(figure, name="study-parallel", title="All at once", description=words)
    return Chart(
        "All at once", "A line for each trial; those of the best third in colour. Each axis has its own scale.", svg
    )


def _name_axes(axes: Axes, parameters: Sequence[Parameter]) -> None:
    axes.set_xticks(range(len(parameters)), [short_name(p.name) for p in parameters], rotation=25, ha="right")
    axes.set_yticks([])
    axes.set_ylim(-0.14, 1.14)
    for x, parameter in enumerate(parameters):
        low, high = ends_of(parameter)
        axes.axvline(x, color=MUTED, lw=0.6, zorder=0)
        axes.annotate(low, (x, -0.02), ha="center", va="top", color=INK, fontsize=7.5)
        axes.annotate(high, (x, 1.02), ha="center", va="bottom", color=INK, fontsize=7.5)
