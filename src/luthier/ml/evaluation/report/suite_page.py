"""The page of a suite's result: the verdict in two sentences, the table behind it, each task, and its samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from luthier.core.results.task_result import GateOutcome, SuiteResult, TaskResult
from luthier.ml.charts import figures
from luthier.ml.charts.fact import Fact
from luthier.ml.charts.judged_rows import scored_heading, tone_of
from luthier.ml.charts.page import page_environment, replace_text
from luthier.ml.evaluation.report.page import TEMPLATES, fold
from luthier.ml.evaluation.report.samples import choose_samples
from luthier.ml.evaluation.report.task_charts import gains_chart, task_charts
from luthier.ml.evaluation.task_view import Result, as_evaluation, summary, task_view

MAX_SAMPLES: Final = 6
_UNDECIDED: Final = "Measured, but not compared: a verdict needs a second system on the same rows."


def write_suite_page(result: SuiteResult, path: Path, gate: GateOutcome | None = None) -> Path:
    """Write the page to `path`, whole or not at all.

    Args:
        result: what is shown.
        path: of the page.
        gate: what a gate said of it.

    Raises:
        StorageFullError: the disk is full.
    """
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
        values: what this template shows beside them.
    """
    environment = page_environment(TEMPLATES, fold)
    found = summary(result)
    tasks = result.tasks if isinstance(result, SuiteResult) else result.probes
    common = {
        "result": result,
        "summary": found,
        "gains": gains_chart(found),
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
        "charts": task_charts(view),
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
        Fact("Rows judged", f"{rows:,}", "over all tasks"),
        Fact(
            "Trainings", f"{result.num_seeds:,}", "seeds" if result.num_seeds > 1 else "one seed: luck is not measured"
        ),
        Fact("Took", figures.duration(result.seconds)),
    ]
