"""Views of evaluation results for reports and pages: roles of the systems, samples by row, tables of tasks.

Roles are the tuned system and its baseline. No drawing library is imported: the HTML reports and the server's pages
both use these views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from luthier.core.evaluation import (
    NOT_DISTINGUISHABLE,
    Comparison,
    Evaluation,
    ReliabilityBin,
    RowsPoint,
    Sample,
    SystemResult,
    Verdict,
)
from luthier.core.ids import is_trained_name
from luthier.core.results.release_gate import BASE
from luthier.core.results.suite import Confusion, SafetyResult, SuiteResult, TaskResult
from luthier.ml.charts.judged_rows import Cell, DifferenceRow, MetricRow, difference_row, metric_axis, metric_rows
from luthier.ml.charts.judged_rows import metric_names as names_of
from luthier.ml.charts.spec import Axis, Mark, Plot, Role, Series, points_of
from luthier.ml.evaluation.prompt_views import prompts_but_best


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of the systems of a verdict.

    Attributes:
        candidate: the system that is evaluated.
        baseline: the system to compare it with; None if there is only one system.
    """

    candidate: str
    baseline: str | None


def roles(evaluation: Evaluation) -> Roles | None:
    """The candidate and its baseline; None if no system was evaluated.

    Candidate: the last one, which the verdict is about. An adapter does not tell: full fine-tuning makes none, while a
    run beside it may have one.
    Baseline: the first other system without examples in its prompt; otherwise the first other system.
    """
    systems = evaluation.systems
    if not systems:
        return None
    candidate = systems[-1]
    rest = [system for system in systems if system.name != candidate.name and system.is_model]
    bare = [system for system in rest if not system.is_prompted]
    baseline = next(iter(bare or rest), None)
    return Roles(candidate.name, baseline.name if baseline else None)


def base_of(systems: Sequence[SystemResult], candidate: str) -> str | None:
    """The candidate's model before tuning, without examples in its prompt; otherwise a system named `base`.

    What full fine-tuning of the same model made beside it is not that model, although it has no adapter either.
    """
    own = next((one for one in systems if one.name == candidate), None)
    plain = [one for one in systems if one.is_model and not one.is_prompted and one.adapter is None]
    others = [one for one in plain if one.name != candidate and not is_trained_name(one.name)]
    same = [one.name for one in others if own is not None and one.model == own.model]
    # A fully fine-tuned model may be called by another name than its run's id.
    by_its_name = next((name for name in same if own is not None and name in (BASE, own.model)), None)
    return by_its_name or next(iter(same), None) or next((one.name for one in others if one.name == BASE), None)


def metric_names(evaluation: Evaluation) -> list[str]:
    """All metrics of any system: the verdict's metric first, the others in order of occurrence."""
    return names_of(evaluation.systems, None if evaluation.verdict is None else evaluation.verdict.metric)


MAX_CONFUSION_LABELS: Final = 12


def confusions(evaluation: Evaluation, roles: Roles) -> tuple[tuple[str, Confusion], ...]:
    """The confusion matrices of the models, the candidate first; empty if the answers are not labels.

    For several prompting methods of a model only the best one.
    """
    if not evaluation.labels:
        return ()
    from luthier.ml.evaluation.metrics.classification import Labelling, confusion
    from luthier.ml.evaluation.metrics.protocol import Observations

    labelling = Labelling(evaluation.labels)
    found = []
    left_out = prompts_but_best(evaluation)
    for system in sorted(evaluation.systems, key=lambda one: one.name != roles.candidate):
        if system.is_model and system.samples and system.name not in left_out:
            outputs, references = zip(*((one.output, one.reference) for one in system.samples), strict=True)
            found.append((system.name, confusion(labelling, Observations(outputs=outputs, references=references))))
    return tuple(found)


def bar_mark(verdict: Verdict | None, metric: str) -> Mark | None:
    """The line of the bar in the chart of a metric; None if there is none for it."""
    bar = None if verdict is None else verdict.bar
    if bar is None or bar.metric != metric:
        return None
    return Mark(bar.value, f"asked for: {bar.value:g}" if bar.agreement is None else f"people agree: {bar.value:.2g}")


def rows_chart(verdict: Verdict | None, *, title: str = "") -> Plot | None:
    """A baseline's figure by the number of training rows, and its expected value for twice as many.

    Args:
        verdict: no chart if it is None or has no such figures.
        title: of the metric; empty for its name.
    """
    curve = None if verdict is None else verdict.learning_curve
    if curve is None or not curve.points or curve.expected is None:
        return None

    def dots(name: str, points: Sequence[RowsPoint], role: Role, *, is_open: bool = False) -> Series:
        return Series(
            name,
            points_of((one.rows for one in points), (one.value for one in points)),
            role,
            "dots",
            labels=[f"{one.value:.3g} [{one.low:.3g}, {one.high:.3g}], {one.rows:,} rows" for one in points],
            intervals=[(one.low, one.high) for one in points],
            is_open=is_open,
            radius_pixels=4.0,
        )

    sizes = [one.rows for one in (*curve.points, curve.expected)]
    return Plot(
        "learning-curve",
        "Would more rows help?",
        Axis("training rows", scale="log", ticks=[(float(rows), f"{rows:,}") for rows in sizes]),
        metric_axis(curve.metric, title or curve.metric),
        [
            dots(curve.system, curve.points, "other-1"),
            dots("expected of twice the rows", [curve.expected], "muted", is_open=True),
        ],
        caption=curve.advice,
    )


Better = Literal["", "candidate", "baseline", "neither"]
Kind = Literal["", "changed", "same", "empty", "cut off", "failed"]
Order = Literal["worst", "best", "file"]
BETTER: Final[tuple[Better, ...]] = get_args(Better)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
ORDERS: Final[tuple[Order, ...]] = get_args(Order)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One held-out row.

    Attributes:
        row_id: id of the row.
        prompt: the question.
        reference: the row's own answer.
        samples: by system name, in order; a system may lack one.
        gain: the candidate's score minus that of the baseline, or the score alone without a baseline, with the sign
            such that more is better. None if a score is missing.
    """

    row_id: str
    prompt: str
    reference: str
    samples: dict[str, Sample]
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class SampleFilter:
    """Filter and order of rows. Empty words, kinds and limits do not filter.

    Attributes:
        words: all of them must occur in the prompt, the reference or an answer, ignoring case.
        metric: the metric of gain and score, or None.
        better: which side has the better score.
        low: minimum score of the candidate.
        high: maximum score of the candidate.
        order: by gain, worst or best first, or in file order.
        kind: of the candidate's answer; `changed` and `same` compare it with the baseline's.
    """

    metric: str | None = None
    words: str = ""
    better: Better = ""
    kind: Kind = ""
    low: float | None = None
    high: float | None = None
    order: Order = "worst"


def scored_metrics(evaluation: Evaluation) -> list[str]:
    """The metrics with scores for single rows, that of the verdict first."""
    names = dict.fromkeys(n for system in evaluation.systems for s in system.samples[:50] for n in s.scores)
    first = evaluation.verdict.metric if evaluation.verdict is not None else ""
    return sorted(names, key=lambda name: name != first)


def choose_rows(evaluation: Evaluation, roles: Roles, choice: SampleFilter) -> list[SampleRow]:
    """The matching rows, in order; rows without a gain come last when ordered by it."""
    found = [row for row in _rows(evaluation, roles, choice.metric) if _fits(row, roles, choice)]
    # Rows are already in file order.
    if choice.order == "file" or choice.metric is None:
        return found
    sign = 1.0 if choice.order == "worst" else -1.0
    return sorted(found, key=lambda row: (row.gain is None, sign * (row.gain or 0.0)))


def _rows(evaluation: Evaluation, roles: Roles, metric: str | None) -> list[SampleRow]:
    by_row: dict[str, dict[str, Sample]] = {}
    for system in evaluation.systems:
        for sample in system.samples:
            by_row.setdefault(sample.row_id, {})[system.name] = sample
    sign = _sign(evaluation, metric)
    rows = []
    for row_id, samples in by_row.items():
        # Prompt and reference are the same for all systems.
        one = samples.get(roles.candidate) or next(iter(samples.values()))
        rows.append(SampleRow(row_id, one.prompt, one.reference, samples, _row_gain(samples, roles, metric, sign)))
    return rows


def _sign(evaluation: Evaluation, metric: str | None) -> float:
    found = next((system.metrics[metric] for system in evaluation.systems if metric in system.metrics), None)
    return -1.0 if found is not None and not found.higher_is_better else 1.0


def _row_gain(samples: dict[str, Sample], roles: Roles, metric: str | None, sign: float) -> float | None:
    after = _score(samples.get(roles.candidate), metric)
    if after is None or roles.baseline is None:
        return None if after is None else sign * after
    before = _score(samples.get(roles.baseline), metric)
    return None if before is None else sign * (after - before)


def _score(sample: Sample | None, metric: str | None) -> float | None:
    return None if sample is None or metric is None else sample.scores.get(metric)


def _fits(row: SampleRow, roles: Roles, choice: SampleFilter) -> bool:
    mine = row.samples.get(roles.candidate)
    score = _score(mine, choice.metric)
    if choice.low is not None and (score is None or score < choice.low):
        return False
    if choice.high is not None and (score is None or score > choice.high):
        return False
    if choice.better and (roles.baseline is None or _who_is_better(row) != choice.better):
        return False
    if choice.kind and (mine is None or not _is_kind(mine, row.samples.get(roles.baseline or ""), choice.kind)):
        return False
    return not choice.words or _has_words(row, choice.words.casefold().split())


def _who_is_better(row: SampleRow) -> Better:
    if row.gain is None:
        return ""
    return "candidate" if row.gain > 0 else "baseline" if row.gain < 0 else "neither"


def _is_kind(mine: Sample, other: Sample | None, kind: Kind) -> bool:
    if kind in ("changed", "same"):
        return other is not None and (mine.shown != other.shown) == (kind == "changed")
    if kind == "empty":
        return not mine.shown.strip()
    return mine.finish_reason == ("length" if kind == "cut off" else "error")


def _has_words(row: SampleRow, words: Sequence[str]) -> bool:
    texts = [row.row_id, row.prompt, row.reference, *(sample.shown for sample in row.samples.values())]
    whole = "\n".join(texts).casefold()
    return all(word in whole for word in words)


Result = SuiteResult | SafetyResult
_CUSTOMARY = 0.05


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One metric of one task.

    Attributes:
        task: the task of the row.
        metric: the metric of the row.
        cells: by system, in the order of `Summary.systems`.
        difference: candidate minus base; None if they were not compared.
        gain: the same with its interval, with the sign such that more is better.
        begins: the number of table rows of the task, in its first row; 0 in the others.
        held: whether the difference remains significant after adjustment for multiple comparisons; None without a
            significant difference.
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
        candidate: the system that is evaluated.
        baseline: what the candidate is compared with; None where it is alone.
        rows: grouped by task.
    """

    systems: tuple[str, ...]
    candidate: str
    baseline: str | None
    rows: tuple[SummaryRow, ...]

    @property
    def gains(self) -> list[tuple[SummaryRow, tuple[float, float, float]]]:
        """The gains that share a chart: those in the tasks' primary metrics that are fractions."""
        # Other units have other scales, and cannot share an axis.
        own = [row for row in self.rows if row.metric.is_primary and row.metric.unit == "fraction"]
        return [(row, row.gain) for row in own if row.gain is not None]


@dataclass(frozen=True, slots=True)
class TaskView:
    """The view of one task.

    Attributes:
        task: the task.
        who: its candidate and baseline.
        metrics: figures of all systems.
        differences: all comparisons, those of the candidate first.
        confusions: confusion matrix by system.
        reliability: bins of confidence by system.
        points: for each system with judged answers, the tokens of each answer and its score by `scored`.
        scored: the metric of those scores; empty without judge scores.
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
        """Rows with stored answers."""
        return max((len(system.samples) for system in self.task.systems), default=0)


def tasks_of(result: Result) -> tuple[TaskResult, ...]:
    """Its tasks or probes."""
    return result.tasks if isinstance(result, SuiteResult) else result.probes


def roles_in(result: Result, task: TaskResult) -> Roles:
    """The candidate and the baseline of a task."""
    named = result.base if isinstance(result, SafetyResult) else None
    known = {system.name for system in task.systems}
    # If a task has no base, the candidate's own base model is used, if evaluated.
    return Roles(result.candidate, named if named in known else base_of(task.systems, result.candidate))


def summary(result: Result) -> Summary:
    """The table over all tasks; unadjusted p-values are adjusted by Holm over all of its rows."""
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
                    gain=None if one is None else _gain_interval(one, higher_is_better=metric.higher_is_better),
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
    scored = task.primary if task.primary in task.judges else ""
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
    """A task in the form of an evaluation, for code that selects, filters and shows samples."""
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
        # Only the metric is needed, for selecting samples: the headline belongs to all tasks together.
        verdict=Verdict(word=word, metric=task.primary, headline=""),
        seconds=result.seconds,
    )


def shade(count: int, row: Sequence[int]) -> int:
    """The shade of a cell of a confusion matrix, 0 to 5, by its share of its row."""
    return round(5 * count / total) if (total := sum(row)) else 0


def _own_comparisons(result: Result, task: TaskResult) -> dict[str, Comparison]:
    """Candidate against base, by metric."""
    who = roles_in(result, task)
    return {
        one.metric: one for one in task.comparisons if (one.candidate, one.baseline) == (who.candidate, who.baseline)
    }


def _gain_interval(one: Comparison, *, higher_is_better: bool) -> tuple[float, float, float]:
    sign = 1.0 if higher_is_better else -1.0
    low, high = sorted((sign * one.low, sign * one.high))
    return sign * one.difference, low, high


def _held(one: Comparison, adjusted: float) -> bool | None:
    if one.verdict == NOT_DISTINGUISHABLE:
        return None
    return (adjusted if one.adjusted_p_value is None else one.adjusted_p_value) < _CUSTOMARY


def _points(task: TaskResult, scored: str) -> tuple[tuple[str, tuple[tuple[float, float], ...]], ...]:
    """Tokens and score of each answer; empty if no answer has both, or without judge scores."""
    found = []
    for system in task.systems:
        points = [(float(one.num_new_tokens), one.scores[scored]) for one in system.samples if scored in one.scores]
        if points:
            found.append((system.name, tuple(points)))
    return tuple(found)
