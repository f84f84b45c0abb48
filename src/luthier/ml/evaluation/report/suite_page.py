"""The pages of a suite and of a safety check: the verdict, the table behind it, each task with its charts and samples.

Charts of tasks: gains over the base, reliability, confusion, win rates, and length against score. A safety check shows
what tuning did to it, probe by probe, with the limits of each measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from luthier.core.results.suite import GateOutcome, SafetyResult, SuiteResult, TaskResult
from luthier.core.system.files import replace_text
from luthier.ml.charts import figures
from luthier.ml.charts.figures import Fact, decimals_for, interval, number, signed
from luthier.ml.charts.judged_rows import concerns_in_words, metric_heading, scored_heading, tone_of
from luthier.ml.charts.page import Chart, page_environment
from luthier.ml.charts.spec import OTHERS, Axis, IntervalRow, Intervals, Mark, Plot, Role, Series
from luthier.ml.charts.svg import report_chart
from luthier.ml.charts.system_names import chart_name
from luthier.ml.evaluation.label_confidence import reliability_plot
from luthier.ml.evaluation.report.evaluation_results import choose_samples, confusion_chart
from luthier.ml.evaluation.report.page import TEMPLATES
from luthier.ml.evaluation.result_views import Result, Summary, TaskView, as_evaluation, summary, task_view

_WIDTH: Final = 460
_SQUARE: Final = 330
_MAX_POINTS: Final = 500
WIN_RATE: Final = "win_rate"


def gains_plot(found: Summary, titles: Mapping[str, str] | None = None) -> Intervals | None:
    """The difference in each task's own metric, candidate less base, turned so that right is better; fractions only.

    Args:
        found: The figures.
        titles: What tasks are called, by their names; one without a title is called by its name.
    """
    titles = {row.task.name: row.task.name for row, _ in found.gains} | dict(titles or {})
    gains = [
        IntervalRow(f"{titles[row.task.name]}: {row.metric.title}", value, low, high, _role_of_gain(low, high))
        for row, (value, low, high) in found.gains
    ]
    if not gains:
        return None
    title = f"Gain of {found.candidate} over {found.baseline}"
    words = "; ".join(f"{titles[row.task.name]} {signed(gain[0], 3)}" for row, gain in found.gains)
    return Intervals(
        "chart-gains",
        title,
        Axis("gain", "fraction"),
        gains,
        zero=True,
        caption="Each task's own metric, with its 95% interval; right of zero is better, across zero is inconclusive.",
        description=f"{title}: {words}.",
        width_pixels=_WIDTH,
    )


def _role_of_gain(low: float, high: float) -> Role:
    return "good" if low > 0 else "bad" if high < 0 else "quiet"


def task_plots(view: TaskView) -> list[Intervals | Plot]:
    """What there is to draw of a task, for its page and its report; confusion matrices are apart."""
    name, found = view.task.name, view.reliability
    made: list[Intervals | Plot] = []
    if any(WIN_RATE in system.metrics for system in view.task.systems):
        made.append(_win_rates(view))
    if found:
        colours = {system: _role(view, system) for system, _ in found}
        made.append(reliability_plot(f"chart-reliability-{name}", "confidence", found, colours, _SQUARE))
    if view.points:
        made.append(_lengths(view))
    return made


def _task_charts(view: TaskView) -> list[Chart]:
    """The same as drawings, with the confusion matrices."""
    confusions = [
        confusion_chart(f"chart-confusion-{view.task.name}-{place}", name, found, _role(view, name))
        for place, (name, found) in enumerate(view.confusions)
    ]
    return [*(report_chart(plot) for plot in task_plots(view)), *confusions]


def _win_rates(view: TaskView) -> Intervals:
    systems = [(one.name, one.metrics[WIN_RATE]) for one in view.task.systems if WIN_RATE in one.metrics]
    parts = []
    for name, found in systems:
        decimals = decimals_for(found.low, found.high)
        parts.append(f"{name} {number(found.value, decimals)} {interval(found.low, found.high, decimals)}")
    rows = [
        IntervalRow(chart_name(name), found.value, found.low, found.high, _role(view, name)) for name, found in systems
    ]
    return Intervals(
        f"chart-wins-{view.task.name}",
        "Win rates",
        Axis("win rate", low=0.4, high=0.6, least=0.0, most=1.0),
        rows,
        limit=Mark(0.5, ""),
        caption="Won comparisons, ties as half, with 95% intervals; dashed: neither is better.",
        description=f"Win rates: {'; '.join(parts)}.",
        width_pixels=_WIDTH,
    )


def _lengths(view: TaskView) -> Plot:
    heading = metric_heading(view.scored)
    return Plot(
        f"chart-lengths-{view.task.name}",
        "Length against score",
        Axis("tokens of the answer"),
        Axis(heading),
        [
            Series(chart_name(name), points[:_MAX_POINTS], _role(view, name), "dots", is_faint=True)
            for name, points in view.points
        ],
        caption=f"Each dot is an answer. Dots that rise to the right: {heading} goes with length, not content.",
        description=f"Length of answers against {heading}: {sum(len(points) for _, points in view.points):,} answers.",
        width_pixels=_WIDTH,
    )


def _role(view: TaskView, name: str) -> Role:
    if name == view.who.candidate:
        return "tuned"
    if name == view.who.baseline:
        return "base"
    # By place, so that a system has the same colour in all charts of a task.
    others = [one.name for one in view.task.systems if one.name not in (view.who.candidate, view.who.baseline)]
    return OTHERS[others.index(name) % len(OTHERS)]


MAX_SAMPLES: Final = 6
_UNDECIDED: Final = "Measured, but not compared: a verdict needs a second system on the same rows."


def write_suite_page(result: SuiteResult, path: Path, gate: GateOutcome | None = None) -> Path:
    """Write the page to `path`, whole or not at all.

    Args:
        result: what is shown.
        path: of the page; its folder is made where it is missing.
        gate: the result of a gate.

    Raises:
        StorageFullError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, render_suite_page(result, gate))
    return path


def render_suite_page(result: SuiteResult, gate: GateOutcome | None = None) -> str:
    """The page as one HTML document that refers to nothing outside itself."""
    verdict = result.verdict
    return render(
        "suite.html.j2",
        result,
        {
            "verdict": verdict,
            "headline": verdict.headline if verdict else _UNDECIDED,
            "badge": verdict.word if verdict else "no verdict",
            "tone": tone_of(verdict.word if verdict else None),
            "gate": gate,
            "key_figures": _key_figures(result),
        },
    )


def render(template: str, result: Result, values: Mapping[str, Any]) -> str:
    """A page about tasks, from its template.

    Args:
        template: name of its file.
        result: of the tasks.
        values: what else this template shows.
    """
    environment = page_environment(TEMPLATES)
    found = summary(result)
    tasks = result.tasks if isinstance(result, SuiteResult) else result.probes
    common = {
        "result": result,
        "summary": found,
        "gains": None if (gains := gains_plot(found)) is None else report_chart(gains),
        "tasks": [task_section(result, task) for task in tasks],
        "when": figures.when(result.created_at),
    }
    return environment.get_template(template).render(common | dict(values))


def task_section(result: Result, task: TaskResult) -> dict[str, Any]:
    """All that a page shows of one task."""
    view = task_view(result, task)
    # Of a task as of an evaluation: the same rule chooses.
    choices = choose_samples(as_evaluation(result, task), view.who)
    return {
        "view": view,
        "task": task,
        "charts": _task_charts(view),
        "rule": choices.rule,
        "samples": choices.chosen[:MAX_SAMPLES],
        "metric_title": scored_heading(task.systems, choices.metric),
        "metric": choices.metric,
        "file": Path(task.data_file).name,
        "cut_off": [
            (one.name, one.num_cut_off, one.num_empty) for one in task.systems if one.num_cut_off + one.num_empty
        ],
    }


def _key_figures(result: SuiteResult) -> list[Fact]:
    rows = sum(task.num_rows for task in result.tasks)
    return [
        Fact("Tasks", f"{len(result.tasks):,}", f"of the suite {result.suite}"),
        Fact("Rows evaluated", f"{rows:,}", "over all tasks"),
        Fact(
            "Trainings", f"{result.num_seeds:,}", "seeds" if result.num_seeds > 1 else "one seed: luck is not measured"
        ),
        Fact("Took", figures.duration(result.seconds)),
    ]


def write_safety_page(result: SafetyResult, path: Path) -> Path:
    """Write the page to `path`, whole or not at all.

    Raises:
        StorageFullError: the disk is full.
    """
    replace_text(path, render_safety_page(result))
    return path


def render_safety_page(result: SafetyResult) -> str:
    """The page as one HTML document that refers to nothing outside itself; what models wrote is folded."""
    tone, badge = "bad" if result.concerns else "quiet", concerns_in_words(len(result.concerns))
    return render("safety.html.j2", result, {"tone": tone, "badge": badge, "key_figures": _safety_figures(result)})


def _safety_figures(result: SafetyResult) -> list[Fact]:
    rows = sum(probe.num_rows for probe in result.probes)
    return [
        Fact("Probes", f"{len(result.probes):,}", f"the {result.suite} set"),
        Fact("Rows asked", f"{rows:,}", "over all probes"),
        Fact("Compared with", result.base or "nothing", "" if result.base else "so what tuning changed is not known"),
        Fact("Took", figures.duration(result.seconds)),
    ]
