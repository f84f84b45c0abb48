"""The page of a study: the answer, what it rests on, where the budget went, charts, every trial, and the recipe to run.

The charts show the best loss as hours were spent, what mattered, each parameter, and all together; of several goals,
quality against each other goal, the front drawn as a line, the knee marked.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.system.files import replace_text
from luthier.core.text.plain_yaml import write_yaml
from luthier.core.workflows.study import GoalName, Parameter, Study, Trial, hours_spent
from luthier.ml.charts import figures
from luthier.ml.charts.page import Chart, page_environment
from luthier.ml.charts.spec import Axis, Bar, Bars, Column, Note, Parallel, Plot, Role, Series, Thread
from luthier.ml.charts.svg import report_chart
from luthier.ml.search.rungs import front_of, point_of, ranked
from luthier.ml.search.space import ends_of, height_of, short_name

_WIDTH: Final = 480
_AXES: Final[Mapping[GoalName, tuple[str, float]]] = {
    "latency": ("weights read for a token, times the base", 1.0),
    "size": ("MB of what is trained", 1e6),
    "cost": ("hours of a whole training, predicted", 1.0),
}
"""Of each goal: what its axis is called, and how much one on it is."""


def front_charts(study: Study, trials: Sequence[Trial]) -> list[Chart]:
    """One picture for each goal besides quality; none where quality is all, or nothing was trained to its end."""
    front, knee = front_of(study.spec, trials, {})
    return [_against(goal, trials, front, knee) for goal in study.spec.goals if goal != "quality" and front]


def _against(goal: GoalName, trials: Sequence[Trial], front: Sequence[Trial], knee: int | None) -> Chart:
    label, one = _AXES[goal]

    def at_of(trial: Trial) -> tuple[float, float]:
        amount, loss = point_of(trial, (goal, "quality"))
        return amount / one, loss

    whole = [trial for trial in trials if trial.kind == "search" and trial.state == "done"]
    ends = sorted(at_of(trial) for trial in front)
    series = [
        Series("", [at_of(trial) for trial in whole], "muted", "dots", is_faint=True, radius_pixels=4.0),
        Series("", ends, "tuned", radius_pixels=4.0),
        Series("", ends, "tuned", "dots", radius_pixels=4.0),
    ]
    notes = [Note(*at_of(trial), f"knee: trial {knee}", is_ringed=True) for trial in front if trial.number == knee]
    chart = Plot(
        f"study-front-{goal}",
        f"Quality against {goal}",
        Axis(label),
        Axis("validation loss"),
        series,
        notes=notes,
        caption="Each dot is a whole training; no other beats those on the line in all goals of the study.",
        description=f"{len(front)} of {len(whole)} whole trainings are on the front; the knee is trial {knee}.",
        width_pixels=_WIDTH,
        height_pixels=280,
    )
    return report_chart(chart)


_ROLES: Final[tuple[Role, Role, Role]] = ("base", "other-1", "tuned")
"""Of the first, the middle and the last rung."""


def study_charts(study: Study, trials: Sequence[Trial], importances: Mapping[str, float]) -> list[Chart]:
    """All pictures that there is something to draw for, the most informative first."""
    searched = [trial for trial in trials if trial.kind == "search" and trial.results]
    found = [_progress(study, searched), *front_charts(study, trials)]
    if importances:
        found.append(_importances(importances))
    drawn = [p for p in study.spec.space.parameters if not p.is_fixed and sum(_has(t, p) for t in searched) > 2]
    found += [_slice(study, parameter, searched) for parameter in drawn]
    if len(drawn) > 2 and len(searched) > 3:
        found.append(_parallel(drawn, searched))
    return found


def _has(trial: Trial, parameter: Parameter) -> bool:
    """Whether a trial sets a parameter, to a value that has a place on its axis: a narrowing may have taken it out."""
    value = trial.values.get(parameter.name)
    return value is not None and (parameter.kind != "choice" or value in parameter.choices)


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
        "Loss over hours spent",
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
    own = [trial for trial in trials if _has(trial, parameter)]
    short = short_name(parameter.name)
    if parameter.kind == "choice":
        places = {value: place for place, value in enumerate(parameter.choices)}
        names = [f"{value:g}" if isinstance(value, float) else str(value) for value in places]
        ticks = [(float(place), name) for place, name in enumerate(names)]
        x = Axis(short, low=-0.6, high=len(places) - 0.4, ticks=ticks)
        across = [float(places[trial.values[parameter.name]]) for trial in own]
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
    """One line a trial over all parameters, each scaled to its own range; the best third is highlighted."""
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
        "All parameters",
        [Column(short_name(parameter.name), *ends_of(parameter)) for parameter in parameters],
        # The last line is drawn on top: the best ones must not be covered.
        lines[::-1],
        caption="A line for each trial; those of the best third in colour. Each axis has its own scale.",
        description=f"{len(order)} trials over {len(parameters)} parameters; the best third is drawn in colour.",
        width_pixels=_WIDTH,
        height_pixels=280,
    )
    return report_chart(chart)


TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Ending:
    """The result at the end of a study.

    Attributes:
        headline: of the final run's verdict, empty where nothing was evaluated.
    """

    recipe: Mapping[str, object]
    headline: str = ""
    report_path: str = ""


def write_study_page(
    path: Path,
    study: Study,
    trials: Sequence[Trial],
    importances: Mapping[str, float],
    repeated: Mapping[int, Sequence[float]],
    ending: Ending,
) -> Path:
    """Write the page to `path`, whole or not at all.

    Args:
        path: of the page.
        study: the study.
        trials: all of its trials.
        importances: the importance of each parameter, by name.
        repeated: the losses of the trials that were trained with several seeds, by their numbers.
        ending: how the study has ended.

    Raises:
        StorageFullError: the disk is full.
    """

    environment = page_environment(TEMPLATES)
    best_first = ranked(trials)
    page = environment.get_template("study.html.j2").render(
        study=study,
        headline=headline(study, trials, repeated),
        ending=ending,
        charts=study_charts(study, trials, importances),
        budget=budget_rows(study, trials),
        # Failed and repeated trials have no rank; they follow in the order of their numbers.
        rows=[_row(trial) for trial in [*best_first, *(trial for trial in trials if trial not in best_first)]],
        recipe=write_yaml(dict(ending.recipe)),
        when=figures.when(study.created_at),
        parameters=study.spec.space.parameters,
        front=front_rows(study, trials, repeated),
        start=study.spec.start,
    )
    replace_text(path, page)
    return path


def headline(study: Study, trials: Sequence[Trial], repeated: Mapping[int, Sequence[float]]) -> str:
    """The answer in at most two sentences: which trial is best, by how much against the recipe as it came."""
    searched = [trial for trial in trials if trial.kind == "search"]
    hours = _hours(hours_spent(study, trials))
    tried = f"{len(searched)} {'recipe was' if len(searched) == 1 else 'recipes were'} tried in {hours}"
    if study.winner is None:
        return f"{tried}; none is named best yet."
    winner, own = trials[study.winner], trials[0]
    losses = list(repeated.get(winner.number, ()))
    what = f"trial {winner.number} is best, validation loss {winner.loss:.4f}"
    if len(losses) > 1:
        mean, spread = statistics.fmean(losses), figures.number(statistics.stdev(losses), 4)
        what = (
            f"trial {winner.number} is best, mean validation loss {mean:.4f} over {len(losses)} seeds "
            f"(deviation {spread})"
        )
    if len(study.spec.goals) > 1:
        return f"{tried} for {', '.join(study.spec.goals)}; the knee of the front: {what.replace(' is best,', ',')}."
    if winner.number == 0:
        return f"{tried}: the original recipe is best, validation loss {own.loss:.4f}."
    share = own.results[-1].share if own.results else 0.0
    at = "" if share == 1 else f", which was stopped after {share:.0%} of its steps"
    against = "" if own.loss is None else f" The original recipe had {own.loss:.4f}{at}."
    return f"{tried}: {what}.{against}"


def front_rows(
    study: Study, trials: Sequence[Trial], repeated: Mapping[int, Sequence[float]]
) -> list[tuple[int, list[str], bool]]:
    """The front of a study with several goals: trial, its value for each goal, and whether it is the knee."""
    if len(study.spec.goals) == 1:
        return []
    front, knee = front_of(study.spec, trials, repeated)
    rows = []
    for trial in front:
        losses = repeated.get(trial.number)
        point = point_of(trial, study.spec.goals, quality=statistics.fmean(losses) if losses else trial.loss)
        said = [_of_goal(goal, value) for goal, value in zip(study.spec.goals, point, strict=True)]
        rows.append((trial.number, said, trial.number == knee))
    return rows


def _of_goal(goal: GoalName, value: float) -> str:
    if goal == "cost":
        return _hours(value)
    return f"{value / 1e6:.4g} MB" if goal == "size" else f"{value:.4f}"


def budget_rows(study: Study, trials: Sequence[Trial]) -> list[tuple[str, float, float]]:
    """Where the hours went: what for, hours, and their share of the budget."""
    search = sum(trial.hours for trial in trials if trial.kind == "search")
    confirm = sum(trial.hours for trial in trials if trial.kind == "confirm")
    # What is left over is the final run; rounding of the parts may exceed the whole.
    final = max(0.0, study.hours - search - confirm - study.overhead_hours)
    rows = [
        ("trials", search),
        ("repeats with other seeds", confirm),
        ("final run and evaluation", final if study.hours else 0.0),
        ("preparing and deciding", study.overhead_hours),
    ]
    return [(name, hours, hours / study.spec.hours) for name, hours in rows]


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    kind: str
    values: str
    state: str
    share: str
    loss: str
    time: str
    reason: str


def _row(trial: Trial) -> _Row:
    values = ", ".join(f"{name.rpartition('.')[2]} {figures.plain(value)}" for name, value in trial.values.items())
    last = trial.results[-1] if trial.results else None
    return _Row(
        number=trial.number,
        kind="" if trial.kind == "search" else f"trial {trial.of} again",
        values=values or "the original recipe",
        state=trial.state,
        share="" if last is None else figures.percent(last.share),
        loss="" if last is None else f"{last.loss:.4f}",
        time=_hours(trial.hours),
        reason=trial.reason,
    )


def _hours(hours: float) -> str:
    return figures.duration(hours * 3600)
