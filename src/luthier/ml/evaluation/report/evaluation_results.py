"""The evaluation part of a report: tables of systems, interval charts, samples, suites and safety checks.

An interval chart has a dot for the value and a whisker for its 95% interval, one small chart a metric. The ten samples
are chosen by a stated rule, without cherry-picking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from luthier.core.evaluation import Evaluation, Sample, SystemResult
from luthier.core.ids import sha256_bytes
from luthier.core.results.suite import Confusion, GateOutcome, SafetyResult, SuiteResult
from luthier.core.text.counted import counted
from luthier.ml.charts.figures import common_decimals, interval, number
from luthier.ml.charts.judged_rows import (
    DifferenceRow,
    MetricRow,
    Tone,
    concerns_in_words,
    difference_row,
    metric_axis,
    metric_heading,
    metric_title,
    start,
    tone_of,
    units_of,
)
from luthier.ml.charts.judged_rows import metric_rows as rows_of
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import OTHERS, Axis, Cell, IntervalRow, Intervals, Mark, Matrix, Role
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.metrics.classification import joined_labels
from luthier.ml.evaluation.result_views import (
    MAX_CONFUSION_LABELS,
    Roles,
    bar_mark,
    confusions,
    metric_names,
    rows_chart,
)


@dataclass(frozen=True, slots=True)
class Differences:
    """All differences between two systems.

    Attributes:
        candidate: name of the one.
        baseline: name of the other, which is subtracted.
        rows: one a metric.
    """

    candidate: str
    baseline: str
    rows: tuple[DifferenceRow, ...]


def metric_rows(evaluation: Evaluation) -> list[MetricRow]:
    """The table of systems: one row a metric, one cell a system, in the order of the systems."""
    primary = None if evaluation.verdict is None else evaluation.verdict.metric
    return rows_of(evaluation.systems, evaluation.comparisons, primary, metric_heading)


def differences(evaluation: Evaluation, roles: Roles) -> tuple[list[Differences], list[Differences]]:
    """The differences of the tuned system to each other one, and those among the others."""
    pairs: dict[tuple[str, str], list[DifferenceRow]] = {}
    order = {name: place for place, name in enumerate(metric_names(evaluation))}
    units = units_of(evaluation.systems)
    for comparison in sorted(evaluation.comparisons, key=lambda c: order.get(c.metric, len(order))):
        row = difference_row(comparison, units[comparison.metric], heading=metric_heading)
        pairs.setdefault((comparison.candidate, comparison.baseline), []).append(row)
    every = [Differences(candidate, baseline, tuple(rows)) for (candidate, baseline), rows in pairs.items()]
    mine = [pair for pair in every if pair.candidate == roles.candidate]
    return mine, [pair for pair in every if pair.candidate != roles.candidate]


_WIDTH: Final = 460


def interval_charts(evaluation: Evaluation, roles: Roles) -> list[Chart]:
    """One chart for each metric in which there is something to see, in the order of the metrics."""
    nothing = without_chart(evaluation)
    colours = system_colours(evaluation, roles)
    names = [name for name in metric_names(evaluation) if name not in nothing]
    return [
        interval_chart(evaluation.systems, colours, name, limit=bar_mark(evaluation.verdict, name)) for name in names
    ]


def without_chart(evaluation: Evaluation) -> list[str]:
    """Metrics whose chart would show nothing: every system has the same value and interval."""
    found = []
    for name in metric_names(evaluation):
        metrics = [system.metrics[name] for system in evaluation.systems if name in system.metrics]
        figures = {(metric.value, metric.low, metric.high) for metric in metrics}
        if len(figures) == 1 and (len(metrics) > 1 or metrics[0].low == metrics[0].high):
            found.append(name)
    return found


def system_colours(evaluation: Evaluation, roles: Roles) -> dict[str, Role]:
    """A colour for each system: the base grey, the tuned one the page's accent, others in turn."""
    colours: dict[str, Role] = {}
    num_others = 0
    for system in evaluation.systems:
        if system.name == roles.candidate:
            colours[system.name] = "tuned"
        elif system.name == roles.baseline:
            colours[system.name] = "base"
        else:
            colours[system.name] = OTHERS[num_others % len(OTHERS)]
            num_others += 1
    return colours


def interval_chart(
    all_systems: Sequence[SystemResult], colours: Mapping[str, Role], metric: str, *, limit: Mark | None = None
) -> Chart:
    """One metric over all systems that have it.

    Args:
        all_systems: in the order of the rows.
        colours: of each system, by its name.
        metric: its name.
        limit: what the systems have to reach; None where nothing is required.
    """
    systems = [system for system in all_systems if metric in system.metrics]
    first = systems[0].metrics[metric]
    decimals = common_decimals([system.metrics[metric] for system in systems])
    direction = "higher is better" if first.higher_is_better else "lower is better"
    rows = [
        IntervalRow(one.name, found.value, found.low, found.high, colours[one.name], number(found.value, decimals))
        for one, found in ((system, system.metrics[metric]) for system in systems)
    ]
    chart = Intervals(
        f"chart-metric-{metric}",
        f"{metric_heading(metric)} of each system",
        metric_axis(metric),
        rows,
        limit=limit,
        description=_in_words(systems, metric, direction, decimals) + (f" {start(limit.name)}." if limit else ""),
        width_pixels=_WIDTH,
    )
    return report_chart(chart, heading=metric_heading(metric), caption=f"{first.unit}, {direction}")


def rows_charts(evaluation: Evaluation) -> list[Chart]:
    """Whether more rows would help, as a chart; none where no baseline was fitted on parts of the rows."""
    verdict = evaluation.verdict
    chart = rows_chart(verdict, title="" if verdict is None else metric_heading(verdict.metric))
    return [] if chart is None else [report_chart(chart)]


def confusion_charts(evaluation: Evaluation, roles: Roles) -> list[Chart]:
    """One chart for each model, the candidate first; none where the rows' answers are not labels."""
    colours, found = system_colours(evaluation, roles), confusions(evaluation, roles)
    return [confusion_chart(f"chart-confusion-{n}", name, one, colours[name]) for n, (name, one) in enumerate(found)]


def label_confidence_charts(evaluation: Evaluation, roles: Roles) -> list[Chart]:
    """Reliability, and what can be answered alone; none where no system has probabilities of labels."""
    if not evaluation.label_confidence:
        return []
    from luthier.ml.evaluation.label_confidence import confidence_plots

    plots = confidence_plots(evaluation.label_confidence, system_colours(evaluation, roles), size_pixels=_WIDTH)
    return [report_chart(plot) for plot in plots]


def confusion_chart(key: str, name: str, found: Confusion, role: Role) -> Chart:
    """True labels down, given ones across.

    Args:
        key: names the chart among those of its page.
        name: of the system.
        found: its answers; labels beyond the 12 that most rows have are drawn as one.
        role: its colour.
    """
    drawn = joined_labels(found, MAX_CONFUSION_LABELS)
    right = sum(row[at] for at, row in enumerate(found.counts))
    text = f"Confusion of {name}: {right:,} of {sum(map(sum, found.counts)):,} right."
    if drawn is not found:
        num_others = len(found.labels) - MAX_CONFUSION_LABELS
        text += f" Drawn are the {MAX_CONFUSION_LABELS} labels that most rows have; {num_others:,} others are one."
    # The last column counts answers without a label.
    cells = [[Cell(count / (sum(row) or 1), f"{count:,}") for count in row] for row in drawn.counts]
    chart = Matrix(
        key,
        f"Confusion of {name}",
        Axis("given"),
        Axis("true"),
        [*drawn.labels, "none"],
        drawn.labels,
        cells,
        role=role,
        caption=f"{text} Darker: a larger part of its row; none: no label at all.",
        description=text,
        width_pixels=min(_WIDTH, 130 + 44 * max(len(drawn.labels) + 1, 3)),
    )
    return report_chart(chart)


def _in_words(systems: Sequence[SystemResult], metric: str, direction: str, decimals: int) -> str:
    found = [(system.name, system.metrics[metric]) for system in systems]
    parts = [f"{name} {number(m.value, decimals)} {interval(m.low, m.high, decimals)}" for name, m in found]
    return f"{metric_heading(metric)}, {direction}, with 95% intervals: {'; '.join(parts)}."


NUM_BEST: Final = 3
NUM_WORST: Final = 3
NUM_RANDOM: Final = 4

BySystem = dict[str, dict[str, Sample]]
Kind = Literal["best", "worst", "random"]


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """One row with what every system made of it.

    Attributes:
        kind: why it is shown.
        row_id: id of the row.
        prompt: the question.
        reference: the row's own answer.
        gain: candidate minus baseline, positive is better; None where it is not scored.
        outputs: each system with what it wrote.
    """

    kind: Kind
    row_id: str
    prompt: str
    reference: str
    gain: float | None
    outputs: tuple[tuple[SystemResult, Sample], ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """The chosen rows.

    Attributes:
        rule: how they were chosen, as text.
        metric: what ranked them; None where all were drawn at random.
        chosen: the rows in the order in which they are shown.
        num_rows: rows that they were chosen from.
    """

    rule: str
    metric: str | None
    chosen: tuple[ChosenRow, ...]
    num_rows: int


def choose_samples(evaluation: Evaluation, roles: Roles) -> Choices:
    """Three rows with the largest gain, three with the smallest, four of the rest at random; all, where there are ten.

    Gain is the per-sample score of the candidate minus that of the baseline (turned round where lower is better). The
    verdict's metric ranks; where it has no per-sample scores, the first metric that has. Ties and the random rows are
    settled by SHA-256 of the evaluation's id and the row's id, so that the same evaluation shows the same rows.
    """
    by_system = {s.name: {sample.row_id: sample for sample in s.samples} for s in evaluation.systems if s.samples}
    candidate = by_system.get(roles.candidate, {})
    if not candidate:
        return Choices("No system wrote text, so there are no samples to show.", None, (), 0)
    metric = _ranking_metric(evaluation, by_system, roles)
    gains = _gains(evaluation, by_system, roles, metric) if metric is not None else {}
    kinds = _kinds(evaluation, list(candidate), gains)
    chosen = tuple(_choice(evaluation, by_system, candidate[row], kind, gains.get(row)) for row, kind in kinds)
    rule = _rule(evaluation, roles, metric, len(candidate), len(candidate) - len(gains))
    return Choices(rule, metric, chosen, len(candidate))


def _lot(evaluation: Evaluation, row_id: str) -> str:
    return sha256_bytes(f"{evaluation.evaluation_id}\n{row_id}".encode())


def _ranking_metric(evaluation: Evaluation, by_system: BySystem, roles: Roles) -> str | None:
    names = metric_names(evaluation)
    return next((name for name in names if _gains(evaluation, by_system, roles, name)), None)


def _gains(evaluation: Evaluation, by_system: BySystem, roles: Roles, metric: str) -> dict[str, float]:
    """The gain of each row that both sides have a score for."""
    found = next(system.metrics[metric] for system in evaluation.systems if metric in system.metrics)
    sign = 1.0 if found.higher_is_better else -1.0
    before = _scores(by_system, roles.baseline, metric)
    after = _scores(by_system, roles.candidate, metric)
    if roles.baseline is None:
        return {row: sign * score for row, score in after.items()}
    return {row: sign * (score - before[row]) for row, score in after.items() if row in before}


def _scores(by_system: BySystem, name: str | None, metric: str) -> dict[str, float]:
    samples = by_system.get(name, {}) if name is not None else {}
    return {row: sample.scores[metric] for row, sample in samples.items() if metric in sample.scores}


def _kinds(evaluation: Evaluation, rows: Sequence[str], gains: Mapping[str, float]) -> list[tuple[str, Kind]]:
    """Which rows are shown: best first, then worst (worst first), then random ones, scored or not."""
    ranked = sorted(gains, key=lambda row: (-gains[row], _lot(evaluation, row)))
    # With few rows the two halves share them, so that no row is both best and worst.
    num_best = min(NUM_BEST, (len(ranked) + 1) // 2)
    num_worst = min(NUM_WORST, len(ranked) - num_best)
    best, worst = ranked[:num_best], ranked[len(ranked) - num_worst :]
    rest = sorted(set(rows) - set(best) - set(worst), key=lambda row: _lot(evaluation, row))
    # Without scores the random ones fill all ten places.
    num_random = NUM_RANDOM if ranked else NUM_BEST + NUM_WORST + NUM_RANDOM
    kinds: list[tuple[str, Kind]] = [(row, "best") for row in best]
    kinds += [(row, "worst") for row in reversed(worst)]
    return kinds + [(row, "random") for row in rest[:num_random]]


def _choice(evaluation: Evaluation, by_system: BySystem, sample: Sample, kind: Kind, gain: float | None) -> ChosenRow:
    row = sample.row_id
    outputs = tuple((s, by_system[s.name][row]) for s in evaluation.systems if row in by_system.get(s.name, {}))
    return ChosenRow(kind, row, outputs[0][1].prompt, sample.reference, gain, outputs)


def _rule(evaluation: Evaluation, roles: Roles, metric: str | None, num_rows: int, num_unscored: int) -> str:
    how_drawn = f"drawn by the evaluation's id ({evaluation.evaluation_id}), not selected"
    if metric is None:
        return f"No metric scores single rows here, so all samples are random, {how_drawn}."
    score = f"the row's own {metric_title(metric)}"
    if roles.baseline is not None:
        score = f"{score}, {roles.candidate} minus {roles.baseline}"
    words = f"Of {num_rows:,} held-out rows: the 3 best and the 3 worst by {score}, and 4 random ones of the rest."
    if num_rows <= NUM_BEST + NUM_WORST + NUM_RANDOM:
        words = f"All {num_rows} held-out rows; best and worst by {score}."
    if num_rows == 1:
        words = f"The only held-out row, by {score}."
    if num_unscored:
        are = "is" if num_unscored == 1 else "are"
        words += f" {counted(num_unscored, 'row has', 'rows have')} no such score and {are} among the random ones."
    unranked = ""
    if evaluation.verdict is not None and evaluation.verdict.metric != metric:
        title = start(metric_title(evaluation.verdict.metric))
        unranked = f" ({title}, the metric of the verdict, has no score for single rows.)"
    return f"{words} Ties and random rows are {how_drawn}.{unranked}"


@dataclass(frozen=True, slots=True)
class AssessedLine:
    """One result in short.

    Attributes:
        result_id: id of the result.
        title: what was assessed.
        word: its verdict.
        tone: colour of the word.
        headline: the verdict as a sentence.
        lines: what it rests on.
        page: file next to the report that contains all of it.
        earlier_page: its name in reports of earlier versions, which suites may share; empty where it is the same.
    """

    result_id: str
    title: str
    word: str
    tone: Tone
    headline: str
    lines: tuple[str, ...]
    page: str
    earlier_page: str = ""


@dataclass(frozen=True, slots=True)
class Assessed:
    """All results of a run.

    Attributes:
        results: one line each.
        gate: what the project's gate says; None where there is no gate.
    """

    results: tuple[AssessedLine, ...]
    gate: GateOutcome | None = None

    def as_json(self) -> dict[str, Any]:
        """For report.json: which results they are, and the gate."""
        gate = None if self.gate is None else self.gate.model_dump(mode="json")
        return {"results": [one.result_id for one in self.results], "gate": gate}


def assessed_of(
    suites: Sequence[SuiteResult], safety: SafetyResult | None, gate: GateOutcome | None
) -> Assessed | None:
    """The lines of a run's results; None where it has none."""
    lines = [_suite(one) for one in suites] + ([] if safety is None else [_safety(safety)])
    return Assessed(tuple(lines), gate) if lines else None


_NO_FILE_NAME: Final = re.compile(r"[^a-z0-9_]")
_MAX_PLAIN: Final = 64
"""Characters of a suite's name in the name of its page: the longest name of a suite file."""


def _suite(result: SuiteResult) -> AssessedLine:
    verdict, (page, earlier_page) = result.verdict, _suite_pages(result.suite)
    return AssessedLine(
        result_id=result.result_id,
        title=f"Suite {result.suite}",
        word="no verdict" if verdict is None else verdict.word,
        tone=tone_of(None if verdict is None else verdict.word),
        headline="" if verdict is None else verdict.headline,
        lines=() if verdict is None else (*verdict.details, *verdict.caveats),
        page=page,
        earlier_page=earlier_page,
    )


def _suite_pages(name: str) -> tuple[str, str]:
    """The file of a suite's page, and its name in reports of earlier versions; empty where it is the same."""
    plain = _NO_FILE_NAME.sub("_", name)
    if plain == name and len(name) <= _MAX_PLAIN:
        return f"suite-{name}.html", ""
    # Evals of OpenAI's API have names of any signs and length: names that differ in signs alone get a digest. A plain
    # name has no dash, so no other name leads to its page.
    readable = _NO_FILE_NAME.sub("_", name.lower())[:_MAX_PLAIN]
    digest = sha256_bytes(name.encode("utf-8", "surrogatepass"))[:8]
    return f"suite-{readable}-{digest}.html", f"suite-{plain}.html"


def _safety(result: SafetyResult) -> AssessedLine:
    num = len(result.concerns)
    return AssessedLine(
        result_id=result.result_id,
        title="Safety",
        word=concerns_in_words(num),
        tone="bad" if num else "quiet",
        headline=result.headline,
        lines=result.concerns,
        page="safety.html",
    )
