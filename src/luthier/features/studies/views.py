"""Use cases: studies for pages: the list of a project, one study, and its charts.

The charts show the loss over the hours spent, all trials over all parameters, and where the budget went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.core.workflows.study import Study, Trial, hours_spent
from luthier.ml.charts import figures
from luthier.ml.charts.spec import OTHERS, Axis, Bar, Bars, Chart, Column, Mark, Parallel, Plot, Role, Series, Thread
from luthier.ml.search.rungs import ranked
from luthier.ml.search.space import ends_of, height_of, short_name
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_page, reference_paths

_MAX_LISTED = 100


@dataclass(frozen=True, slots=True)
class StudyView:
    """The current state of a study.

    Attributes:
        study: As stored.
        status: Its own, or `interrupted` where it should continue and no process works on it.
        trials: In the order of their numbers.
        best: Those of kind `search`, by how far they got and then by loss.
        hours: Spent up to now.
        steps: Of the trials that train at this moment, by number: done, and all of the run's.
    """

    study: Study
    status: str
    trials: Sequence[Trial]
    best: Sequence[Trial]
    hours: float
    steps: Mapping[int, tuple[int, int]]

    @property
    def is_at_work(self) -> bool:
        """Whether a process works on it."""
        return self.status in ("searching", "confirming", "final")


def list_studies(context: Context, caller: Caller) -> list[StudyView]:
    """The studies of the caller's project, the newest first, at most 100."""
    found = context.studies.list(caller.project_id)[:_MAX_LISTED]
    trials = context.studies.trials_of([study.study_id for study in found])
    return [_view(context, study, trials[study.study_id]) for study in found]


def view_study(context: Context, caller: Caller, study_id: str) -> StudyView:
    """One of them.

    Raises:
        NotFoundError: The project has no such study.
    """
    study = context.studies.get(study_id, caller.project_id)
    return _view(context, study, context.studies.trials(study_id))


def report_of(context: Context, caller: Caller, study_id: str) -> str:
    """Its report as an HTML page, without places of this machine.

    Raises:
        NotFoundError: The project has no such study, or the study has no report.
    """
    study = context.studies.get(study_id, caller.project_id)
    try:
        text = (context.settings.home / "studies" / study_id / "report.html").read_text(encoding="utf-8")
    except OSError:
        raise NotFoundError(
            f"study {study_id} has no report",
            expected="a study that is done",
            do="wait until it has finished, then open it again",
        ) from None
    recipe = study.spec.recipe.model_dump(mode="json")
    return redact_page(text, reference_paths(context, recipe))


def study_folders(study: Study) -> list[str]:
    """The folders of a study's training rows, each with a slash: no page shows them."""
    files = study.spec.recipe.data.files()
    return [path.rpartition("/")[0] + "/" for key, path in files.items() if key.startswith("train") and path[:1] == "/"]


def _view(context: Context, study: Study, trials: Sequence[Trial]) -> StudyView:
    from luthier.core.system.files import is_held

    status: str = study.status
    is_over = status in ("done", "paused", "failed")
    if not is_over and not is_held(context.settings.home / "studies" / study.study_id / "lock"):
        status = "interrupted"
    running = [trial for trial in trials if trial.state == "running"] if status != "interrupted" else []
    return StudyView(study, status, trials, ranked(trials), hours_spent(study, trials), _steps(context, running))


def _steps(context: Context, running: Sequence[Trial]) -> dict[int, tuple[int, int]]:
    records = context.runs.some([trial.run_id for trial in running])
    begun = [(trial.number, records[trial.run_id]) for trial in running if trial.run_id in records]
    return {number: (record.step, record.num_steps or 1) for number, record in begun}


_ROLES: tuple[Role, ...] = ("base", *OTHERS)


def study_charts(view: StudyView) -> list[Chart]:
    """All that there is something to draw for."""
    from luthier.ml.search.report.page import budget_rows

    study, searched = view.study, [trial for trial in view.trials if trial.kind == "search" and trial.results]
    if not searched:
        return []
    rows = [
        Bar(name, 100 * share, f"{share:.1%}: {figures.duration(hours * 3600)}")
        for name, hours, share in budget_rows(study, view.trials)
    ]
    # A final run may take longer than expected; the axis then goes beyond 100%.
    is_within = view.hours <= study.spec.hours
    share = Axis("share of the budget", "%", low=0.0, high=100.0 if is_within else None)
    budget = Bars("budget", "Where the budget went", share, rows, None if is_within else Mark(100.0, "all of it"))
    wide: list[Chart] = [_parallel(study, view.best)] if len(searched) > 1 else []
    return [_progress(study, searched), budget, *wide]


def _progress(study: Study, trials: Sequence[Trial]) -> Plot:
    # On the last rung trials are trained to their end.
    last = len(study.spec.rungs) - 1
    points = sorted(
        (result.study_hours, result.rung, result.loss, trial.number) for trial in trials for result in trial.results
    )
    series = []
    for rung in range(last + 1):
        own = [(hours, loss, f"trial {number}") for hours, r, loss, number in points if r == rung]
        share = "a whole training" if rung == last else f"{study.spec.rungs[rung]:.0%}"
        role: Role = "tuned" if rung == last else _ROLES[rung % len(_ROLES)]
        if own:
            dots = [(hours, loss) for hours, loss, _ in own]
            series.append(Series(f"after {share}", dots, role, "dots", [name for _, _, name in own]))
    # Losses of whole trainings alone: those of earlier rungs cannot be compared with them.
    top = [(hours, loss) for hours, rung, loss, _ in points if rung == last]
    if top:
        # The points are in the order of time, so this is the best at each moment.
        lowest = accumulate((loss for _, loss in top), min)
        best = [(hours, loss) for (hours, _), loss in zip(top, lowest, strict=True)]
        series.append(Series("best so far", best, "tuned", "steps"))
    return Plot(
        "progress",
        "Loss over hours spent",
        Axis("hours spent", "h", low=0.0),
        Axis("validation loss"),
        series,
        caption="A dot for each trial on each rung. Only dots of one colour can be compared.",
    )


def _parallel(study: Study, best_first: Sequence[Trial]) -> Parallel:
    """All trials that have a loss; those of the best third in colour, and on top of the others."""
    parameters = [p for p in study.spec.space.parameters if not p.is_fixed]
    losses = [trial.loss for trial in best_first if trial.loss is not None]
    low, high = min(losses), max(losses)
    columns = [Column(short_name(p.name), *ends_of(p)) for p in parameters]
    columns.append(Column("loss", f"{low:.4g}", f"{high:.4g}"))
    num_good = max(1, len(best_first) // 3)
    lines = []
    for place, trial in enumerate(best_first):
        loss = trial.loss or 0.0
        heights = [height_of(p, trial.values) for p in parameters]
        # With one loss for all, every line ends in the middle.
        heights.append((loss - low) / (high - low) if high > low else 0.5)
        values = "; ".join(f"{short_name(name)} {figures.plain(value)}" for name, value in trial.values.items())
        words = f"{values or 'the original recipe'}: loss {loss:.4f} on rung {trial.rung + 1}"
        lines.append(Thread(f"trial {trial.number}", heights, words, "tuned" if place < num_good else "quiet"))
    return Parallel(
        "parallel",
        "All trials by parameter",
        columns,
        lines[::-1],
        caption="The best third in colour: the furthest, then the lowest loss. Drag along a column to pick trials out.",
    )
