"""The page of a study: the answer, what it rests on, where the budget went, every trial, and the recipe to run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.text.plain_yaml import write_yaml
from luthier.core.workflows.study import GoalName, Study, Trial
from luthier.ml.charts import figures
from luthier.ml.charts.page import page_environment, replace_text
from luthier.ml.search.front import front_of, point_of
from luthier.ml.search.rungs import ranked

TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Ending:
    """The result at the end of a study.

    Attributes:
        headline: of the final run's verdict, empty where nothing was judged.
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
        repeated: the losses of the trials that were trained with several seeds, by their numbers.

    Raises:
        StorageFullError: the disk is full.
    """
    from luthier.ml.search.report.charts import study_charts

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
    tried = f"{len(searched)} {'recipe was' if len(searched) == 1 else 'recipes were'} tried in {_hours(study.hours)}"
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
        return f"{tried}: the recipe as it came is best, validation loss {own.loss:.4f}."
    share = own.results[-1].share if own.results else 0.0
    at = "" if share == 1 else f", which was not gone on with after {share:.0%} of its steps"
    against = "" if own.loss is None else f" The recipe as it came had {own.loss:.4f}{at}."
    return f"{tried}: {what}.{against}"


def front_rows(
    study: Study, trials: Sequence[Trial], repeated: Mapping[int, Sequence[float]]
) -> list[tuple[int, list[str], bool]]:
    """The front of a study with several goals: trial, what it comes to by goal, and whether it is the knee."""
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
        ("the best again with other seeds", confirm),
        ("the final run, judging included", final if study.hours else 0.0),
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
        values=values or "the recipe as it came",
        state=trial.state,
        share="" if last is None else figures.percent(last.share),
        loss="" if last is None else f"{last.loss:.4f}",
        time=_hours(trial.hours),
        reason=trial.reason,
    )


def _hours(hours: float) -> str:
    return figures.duration(hours * 3600)
