"""Results of an evaluation as reports and pages show them: roles of the systems, samples by row, tables of tasks.

Roles say which system was tuned and which one it is measured against. Nothing here loads a library that draws: the
HTML reports and the server's pages both start from these views.
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
from luthier.core.results.release_gate import BASE
from luthier.core.results.suite import Confusion, SafetyResult, SuiteResult, TaskResult
from luthier.ml.charts.judged_rows import Cell, DifferenceRow, MetricRow, difference_row, metric_rows
from luthier.ml.charts.judged_rows import metric_names as names_of
from luthier.ml.charts.spec import Axis, Mark, Plot, Role, Series, points_of
from luthier.ml.evaluation.prompt_views import prompts_but_best


@dataclass(frozen=True, slots=True)
class Roles:
    """Names of the systems that a verdict is about.

    Attributes:
        candidate: the system that is judged.
        baseline: what it is compared with; None where there is only one system.
    """

    candidate: str
    baseline: str | None


def roles(evaluation: Evaluation) -> Roles | None:
    """The candidate and its baseline; None where no system was judged.

    Candidate: the only system with an adapter; else the last one, since systems are listed baselines first.
    Baseline: the first other system that gets no examples in its prompt; else the first other system.
    """
    systems = evaluation.systems
    if not systems:
        return None
    adapted = [system for system in systems if system.adapter is not None]
    candidate = adapted[0] if len(adapted) == 1 else systems[-1]
    rest = [system for system in systems if system.name != candidate.name and system.is_model]
    bare = [system for system in rest if not system.is_prompted]
    baseline = next(iter(bare or rest), None)
    return Roles(candidate.name, baseline.name if baseline else None)


def base_of(systems: Sequence[SystemResult], candidate: str) -> str | None:
    """The candidate's own model before it was tuned, without examples in its prompt; or else a system called `base`."""
    own = next((one for one in systems if one.name == candidate), None)
    models = [one for one in systems if one.is_model]
    others = [one for one in models if one.name != candidate and not one.is_prompted and one.adapter is None]
    same = next((one.name for one in others if own is not None and one.model == own.model), None)
    return same or next((one.name for one in others if one.name == BASE), None)


def metric_names(evaluation: Evaluation) -> list[str]:
    """All metrics that any system has: the verdict's metric first, the others as they come."""
    return names_of(evaluation.systems, None if evaluation.verdict is None else evaluation.verdict.metric)


MAX_CONFUSION_LABELS: Final = 12


def confusions(evaluation: Evaluation, roles: Roles) -> tuple[tuple[str, Confusion], ...]:
    """Which label each model gave for which, the candidate first; empty where the rows' answers are no labels.

    Of several ways to prompt a model only the best one.
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
    """The line of what was asked for in the chart of a metric; None where nothing was asked by it."""
    bar = None if verdict is None else verdict.bar
    if bar is None or bar.metric != metric:
        return None
    return Mark(bar.value, f"asked for: {bar.value:g}" if bar.agreement is None else f"people agree: {bar.value:.2g}")


def rows_chart(verdict: Verdict | None, *, title: str = "") -> Plot | None:
    """A baseline's figure by the rows that it was fitted on, and what is expected of twice as many.

    Args:
        verdict: None gives no chart, and neither does one without such figures.
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
        Axis(title or curve.metric),
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
        samples: by the names of the systems, in their order; a system may lack one.
        gain: the candidate's score less that of the baseline, or the score alone where there is no baseline, turned
            round where lower is better: more is better. None where one has no such score.
    """

    row_id: str
    prompt: str
    reference: str
    samples: dict[str, Sample]
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows, and in which order. Empty words, kinds and ends ask for nothing.

    Attributes:
        words: all of them occur in the prompt, the reference or an answer, whatever their case.
        metric: the metric of gain and score; None where there is none.
        better: which side has the better score.
        low: least score of the candidate.
        high: largest score of the candidate.
        order: by gain, the worst or the best first, or as in the file.
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
    """The metrics that have scores for single rows, that of the verdict first."""
    names = dict.fromkeys(n for system in evaluation.systems for s in system.samples[:50] for n in s.scores)
    first = evaluation.verdict.metric if evaluation.verdict is not None else ""
    return sorted(names, key=lambda name: name != first)


def choose_rows(evaluation: Evaluation, roles: Roles, choice: Choice) -> list[SampleRow]:
    """The rows that fit, in order; those without a gain come last where it is what orders them."""
    found = [row for row in _rows(evaluation, roles, choice.metric) if _fits(row, roles, choice)]
    # Rows are in the order of the file already.
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


def _fits(row: SampleRow, roles: Roles, choice: Choice) -> bool:
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
        return other is not None and (mine.output != other.output) == (kind == "changed")
    if kind == "empty":
        return not mine.output.strip()
    return mine.finish_reason == ("length" if kind == "cut off" else "error")


def _has_words(row: SampleRow, words: Sequence[str]) -> bool:
    texts = [row.row_id, row.prompt, row.reference, *(sample.output for sample in row.samples.values())]
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


def _gain_interval(one: Comparison, *, higher_is_better: bool) -> tuple[float, float, float]:
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
