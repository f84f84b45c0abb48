"""The pictures of a study: the best loss as hours were spent, what mattered, each parameter, and all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from luthier.core.workflows.study import Parameter, Study, Trial
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Bar, Bars, Column, Parallel, Plot, Role, Series, Thread
from luthier.ml.charts.svg import report_chart
from luthier.ml.search.report.front_charts import front_charts
from luthier.ml.search.scales import ends_of, height_of, short_name

_WIDTH: Final = 480
_ROLES: Final[tuple[Role, Role, Role]] = ("base", "other-1", "tuned")
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


def _role(study: Study, rung: int) -> Role:
    last = len(study.spec.rungs) - 1
    return _ROLES[-1] if rung == last else _ROLES[0] if rung == 0 else _ROLES[1]


def _progress(study: Study, trials: Sequence[Trial]) -> Chart:
    """Every loss on its rung when it was known, and the lowest on the last rung so far."""
    points = sorted((r.study_hours, r.rung, r.loss) for trial in trials for r in trial.results)
    last = len(study.spec.rungs) - 1
    series = []
    for rung in range(last + 1):
        own = [(hours, loss) for hours, r, loss in points if r == rung]
        name = f"after {study.spec.rungs[rung]:.2g} of a training" if rung < last else "after a whole training"
        series.append(Series(name, own, _role(study, rung), "dots"))
    # Losses of lower rungs are not comparable with those of whole trainings, so they do not move the line.
    top = [(hours, loss) for hours, rung, loss in points if rung == last]
    best = [min(loss for _, loss in top[: i + 1]) for i in range(len(top))]
    series.append(Series("", [(hours, loss) for (hours, _), loss in zip(top, best, strict=True)], "tuned", "steps"))
    words = f"{len(points)} measurements; the lowest loss after a whole training is {best[-1]:.4f}." if best else ""
    chart = Plot(
        "study-progress",
        "Loss as hours were spent",
        Axis("hours spent"),
        Axis("validation loss"),
        series,
        caption="A dot for each trial on each rung; the line is the best so far.",
        description=words,
        width_pixels=_WIDTH,
        height_pixels=280,
    )
    return report_chart(chart)


def _importances(found: Mapping[str, float]) -> Chart:
    chart = Bars(
        "study-importance",
        "What mattered",
        Axis("share of what decides between the best quarter and all", low=0.0),
        [Bar(short_name(name), share, f"{share:.2f}") for name, share in found.items()],
        caption="By PED-ANOVA on the first rung, which all trials have reached; what only pays later looks small here.",
        description="; ".join(f"{short_name(name)} {share:.2f}" for name, share in found.items()),
        width_pixels=_WIDTH,
    )
    return report_chart(chart)


def _slice(study: Study, parameter: Parameter, trials: Sequence[Trial]) -> Chart:
    """Loss against one parameter; of choices each has its place."""
    own = [trial for trial in trials if parameter.name in trial.values]
    short = short_name(parameter.name)
    if parameter.kind == "choice":
        places = {value: place for place, value in enumerate(parameter.choices)}
        names = [f"{value:g}" if isinstance(value, float) else str(value) for value in places]
        ticks = [(float(place), name) for place, name in enumerate(names)]
        x = Axis(short, low=-0.6, high=len(places) - 0.4, ticks=ticks)
        across = [float(places.get(trial.values[parameter.name], 0)) for trial in own]
    else:
        x = Axis(short, scale="log" if parameter.log else "linear")
        across = [float(trial.values[parameter.name]) for trial in own]
    series = [
        Series("", [(at, trial.results[-1].loss)], _role(study, trial.rung), "dots")
        for trial, at in zip(own, across, strict=True)
    ]
    # Farther rungs first: a low loss early says less than one later.
    best = min(own, key=lambda t: (-t.rung, t.results[-1].loss))
    chart = Plot(
        f"study-slice-{short}",
        short,
        x,
        Axis("loss"),
        series,
        caption=parameter.why,
        description=f"{len(own)} trials; the best has {short} {best.values[parameter.name]}.",
        width_pixels=_WIDTH,
        height_pixels=240,
    )
    return report_chart(chart)


def _parallel(parameters: Sequence[Parameter], trials: Sequence[Trial]) -> Chart:
    """One line a trial over all parameters, each scaled to its own range; the best third stands out."""
    order = sorted(trials, key=lambda t: (-t.rung, t.results[-1].loss))
    num_good = max(1, len(order) // 3)
    lines = [
        Thread(
            f"trial {trial.number}",
            [height_of(parameter, trial.values) for parameter in parameters],
            role="tuned" if place < num_good else "muted",
        )
        for place, trial in enumerate(order)
    ]
    chart = Parallel(
        "study-parallel",
        "All at once",
        [Column(short_name(parameter.name), *ends_of(parameter)) for parameter in parameters],
        # The last line is drawn on top: the best ones must not be covered.
        lines[::-1],
        caption="A line for each trial; those of the best third in colour. Each axis has its own scale.",
        description=f"{len(order)} trials over {len(parameters)} parameters; the best third is drawn in colour.",
        width_pixels=_WIDTH,
        height_pixels=280,
    )
    return report_chart(chart)
