"""Results of tasks as pages show them: the table over all tasks, and each task with what is drawn of it.

Without the libraries that draw: reports and the server's pages both start from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Evaluation, Verdict
from luthier.core.results.task_result import Confusion, ReliabilityBin, SafetyResult, SuiteResult, TaskResult
from luthier.ml.charts.judged_rows import Cell, DifferenceRow, MetricRow, difference_row, metric_rows
from luthier.ml.evaluation.roles import Roles, base_of

Result = SuiteResult | SafetyResult
_CUSTOMARY = 0.05


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One metric of one task.

    Attributes:
        task: the task of the row.
        metric: the metric of the row.
        cells: by system, in the order of `Summary.systems`.
        difference: candidate less base; None where they were not compared.
        gain: the same with its interval, turned so that more is better.
        begins: how many rows of the table the task has, in its first one; 0 in the others.
        held: whether the difference still holds among all that were asked at once; None where there is none, or it was
            none by itself.
    """

    task: TaskResult
    metric: MetricRow
    cells: tuple[Cell, ...]
    difference: DifferenceRow | None
    gain: tuple[float, float, float] | None
    begins: int
    held: bool | None


@dataclass(frozen=True, slots=True)
class Summary:
    """All metrics of all tasks.

    Attributes:
        systems: names of all systems, in the order of the columns.
        candidate: the system that is judged.
        baseline: what the candidate is compared with; None where it is alone.
        rows: those of one task follow one another.
    """

    systems: tuple[str, ...]
    candidate: str
    baseline: str | None
    rows: tuple[SummaryRow, ...]

    @property
    def gains(self) -> list[tuple[SummaryRow, tuple[float, float, float]]]:
        """What can be drawn side by side: gains in the tasks' own metrics, where these are fractions."""
        # Other units have other scales, and cannot share an axis.
        own = [row for row in self.rows if row.metric.is_primary and row.metric.unit == "fraction"]
        return [(row, row.gain) for row in own if row.gain is not None]


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task with all that can be shown of it.

    Attributes:
        task: the task.
        who: candidate and baseline in it.
        metrics: figures of all systems.
        differences: all of them, those of the candidate first.
        confusions: confusion matrix by system.
        reliability: bins of confidence by system.
        points: of each system with judged answers, the tokens of each answer and its score by `scored`.
        scored: the metric of those scores; empty where no judge gave any.
    """

    task: TaskResult
    who: Roles
    metrics: tuple[MetricRow, ...]
    differences: tuple[DifferenceRow, ...]
    confusions: tuple[tuple[str, Confusion], ...]
    reliability: tuple[tuple[str, tuple[ReliabilityBin, ...]], ...]
    points: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    scored: str

    @property
    def num_samples(self) -> int:
        """Rows whose answers were kept."""
        return max((len(system.samples) for system in self.task.systems), default=0)


def tasks_of(result: Result) -> tuple[TaskResult, ...]:
    """Its tasks or probes."""
    return result.tasks if isinstance(result, SuiteResult) else result.probes


def roles_in(result: Result, task: TaskResult) -> Roles:
    """Who is judged in a task, and against whom."""
    named = result.base if isinstance(result, SafetyResult) else None
    known = {system.name for system in task.systems}
    # A task may have left the base out; then what the candidate was made from, if that was judged.
    return Roles(result.candidate, named if named in known else base_of(task.systems, result.candidate))


def summary(result: Result) -> Summary:
    """The table over all tasks; p-values that are not adjusted yet are, by Holm, over all of its rows."""
    from luthier.ml.evaluation.statistics import holm

    tasks = tasks_of(result)
    found = {task.name: _own_comparisons(result, task) for task in tasks}
    family = [one for of_task in found.values() for one in of_task.values()]
    # By identity: comparisons of different tasks may be equal in all their fields.
    adjusted = dict(zip(map(id, family), holm([one.p_value for one in family]), strict=True))
    systems = tuple(dict.fromkeys(system.name for task in tasks for system in task.systems))
    rows = []
    for task in tasks:
        metrics = metric_rows(task.systems, task.comparisons, task.primary)
        for place, metric in enumerate(metrics):
            one = found[task.name].get(metric.name)
            by_system = dict(zip((system.name for system in task.systems), metric.cells, strict=True))
            rows.append(
                SummaryRow(
                    task=task,
                    metric=metric,
                    cells=tuple(by_system.get(name, Cell()) for name in systems),
                    difference=None if one is None else difference_row(one, metric.unit, adjusted=adjusted[id(one)]),
                    gain=None if one is None else _gain(one, higher_is_better=metric.higher_is_better),
                    begins=len(metrics) if place == 0 else 0,
                    held=None if one is None else _held(one, adjusted[id(one)]),
                )
            )
    baseline = next((who.baseline for task in tasks if (who := roles_in(result, task)).baseline is not None), None)
    return Summary(systems, result.candidate, baseline, tuple(rows))


def task_view(result: Result, task: TaskResult) -> TaskView:
    """One task of a result."""
    who = roles_in(result, task)
    units = {name: metric.unit for system in task.systems for name, metric in system.metrics.items()}
    ordered = sorted(task.comparisons, key=lambda one: (one.candidate != who.candidate, one.baseline != who.baseline))
    drawn = [(system.name, task.figures[system.name]) for system in task.systems if system.name in task.figures]
    scored = task.primary if task.judges else ""
    return TaskView(
        task=task,
        who=who,
        metrics=tuple(metric_rows(task.systems, task.comparisons, task.primary)),
        differences=tuple(difference_row(one, units.get(one.metric, "")) for one in ordered),
        confusions=tuple((name, one.confusion) for name, one in drawn if one.confusion is not None),
        reliability=tuple((name, one.reliability) for name, one in drawn if one.reliability),
        points=_points(task, scored),
        scored=scored if _points(task, scored) else "",
    )


def as_evaluation(result: Result, task: TaskResult) -> Evaluation:
    """A task as an evaluation of its own: for code that chooses, filters and shows samples."""
    who = roles_in(result, task)
    own = _own_comparisons(result, task).get(task.primary)
    word = NOT_DISTINGUISHABLE if own is None else own.verdict
    return Evaluation(
        evaluation_id=f"{result.result_id}/{task.name}",
        created_at=result.created_at,
        run_id=result.run_id,
        held_out_file=task.data_file,
        held_out_sha256=task.data_sha256,
        num_rows=task.num_rows,
        systems=task.systems,
        comparisons=tuple(one for one in task.comparisons if who.candidate in (one.candidate, one.baseline)),
        # The metric alone is needed, for choosing samples: a headline belongs to all tasks together.
        verdict=Verdict(word=word, metric=task.primary, headline=""),
        seconds=result.seconds,
    )


def shade(count: int, row: Sequence[int]) -> int:
    """How dark a cell of a confusion matrix is, 0 to 5, by its part of its row."""
    return round(5 * count / total) if (total := sum(row)) else 0


def _own_comparisons(result: Result, task: TaskResult) -> dict[str, Comparison]:
    """Candidate against base, by metric."""
    who = roles_in(result, task)
    return {
        one.metric: one for one in task.comparisons if (one.candidate, one.baseline) == (who.candidate, who.baseline)
    }


def _gain(one: Comparison, *, higher_is_better: bool) -> tuple[float, float, float]:
    sign = 1.0 if higher_is_better else -1.0
    low, high = sorted((sign * one.low, sign * one.high))
    return sign * one.difference, low, high


def _held(one: Comparison, adjusted: float) -> bool | None:
    if one.verdict == NOT_DISTINGUISHABLE:
        return None
    return (adjusted if one.adjusted_p_value is None else one.adjusted_p_value) < _CUSTOMARY


def _points(task: TaskResult, scored: str) -> tuple[tuple[str, tuple[tuple[float, float], ...]], ...]:
    """Tokens and score of each answer; none where no answer has both, or no judge gave the scores."""
    found = []
    for system in task.systems:
        points = [(float(one.num_new_tokens), one.scores[scored]) for one in system.samples if scored in one.scores]
        if points:
            found.append((system.name, tuple(points)))
    return tuple(found)
