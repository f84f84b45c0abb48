"""Evaluated systems as ready text for reports and pages: rows of metrics and differences, and titles.

Metrics are called by the title that each one declares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Forgetting, Metric, SystemResult, VerdictWord
from luthier.core.import_string import import_string
from luthier.ml.charts import figures
from luthier.ml.charts.spec import Axis

_SCALE: Final = re.compile(r"-?\d+ to \d+")


def on_scale(unit: str) -> str:
    """What follows a number whose scale is not the usual one from 0 to 1: ` (on 0 to 100)`; empty for others."""
    return f" (on {unit})" if _SCALE.fullmatch(unit) and unit != "0 to 1" else ""


def metric_title(name: str) -> str:
    """The name of a metric in the middle of a sentence: `rouge_l` is ROUGE-L, `exact_match` is exact match.

    An evaluation may outlive the package that brought one of its metrics; that one goes by its bare name then.
    """
    found: str | None = import_string("luthier.ml.evaluation.metrics.registry:title_of")(name)
    return name.replace("_", " ") if found is None else found


def metric_heading(name: str) -> str:
    """The name of a metric as a heading: `rouge_l` is ROUGE-L, `exact_match` is Exact match."""
    return start(metric_title(name))


def metric_axis(metric: str, name: str = "", unit: str = "", *, of_differences: bool = False) -> Axis:
    """The axis of a metric's figures, which ends where the metric does: no share is above 1.

    Args:
        metric: the metric.
        name: of the axis; empty where the chart's title names it.
        unit: of the figures.
        of_differences: whether it shows one figure less another.
    """
    least, most = import_string("luthier.ml.evaluation.metrics.registry:limits_of")(metric)
    if of_differences:
        width = None if least is None or most is None else most - least
        least, most = (None, None) if width is None else (-width, width)
    return Axis(name, unit, least=least, most=most)


def start(text: str) -> str:
    """The same text at the start of a sentence; a word that brings its own capitals (chrF) keeps them."""
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.islower() else text


def thinking_sentence(system: SystemResult) -> str | None:
    """How a system thought, in one sentence; None where it did not."""
    thinking = system.thinking
    if thinking is None:
        return None
    found = f"{system.name} thought before {thinking.num_thoughts:,} of {system.num_samples:,} answers"
    if thinking.mean_tokens is not None:
        found += f", {thinking.mean_tokens:,.0f} tokens on average ({thinking.least_tokens:,} to "
        found += f"{thinking.most_tokens:,})"
    if not thinking.num_cut_off:
        return f"{found}; the thoughts are not part of the answers."
    were = "thought was" if thinking.num_cut_off == 1 else "thoughts were"
    return (
        f"{found}; {thinking.num_cut_off:,} {were} cut off before an answer, which counts as an empty one: "
        "raise max_thinking_tokens."
    )


Tone = Literal["good", "bad", "open", "quiet"]
Heading = Callable[[str], str]
_TONES: Final[dict[VerdictWord | None, Tone]] = {
    "better": "good",
    "worse": "bad",
    NOT_DISTINGUISHABLE: "open",
    None: "quiet",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure with its interval, both empty where the system has none.

    Attributes:
        is_best: surely, not by luck.
    """

    value: str = ""
    interval: str = ""
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric over all systems."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    is_primary: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """One system less another in one metric.

    Attributes:
        adjusted: the p-value, corrected for all comparisons made together; may be empty.
    """

    candidate: str
    baseline: str
    title: str
    unit: str
    difference: str
    interval: str
    p_value: str
    adjusted: str
    word: VerdictWord
    tone: Tone
    rows_needed: int | None


def units_of(systems: Iterable[SystemResult]) -> dict[str, str]:
    """What each metric is counted in."""
    return {name: metric.unit for system in systems for name, metric in system.metrics.items()}


def scored_heading(systems: Iterable[SystemResult], metric: str | None) -> str:
    """What comes before the score of a single row; empty where no metric has such scores."""
    return "" if metric is None else metric_heading(metric) + on_scale(units_of(systems).get(metric, ""))


def tone_of(word: VerdictWord | None) -> Tone:
    """The colour of a verdict; `quiet` where there is none."""
    return _TONES[word]


def concerns_in_words(num: int) -> str:
    """`no concern`, `1 concern`, `3 concerns`: the word of a safety check."""
    return "no concern" if num == 0 else "1 concern" if num == 1 else f"{num} concerns"


def metric_names(systems: Iterable[SystemResult], primary: str | None) -> list[str]:
    """All metrics that any system has: the primary one first, the others as they come."""
    names = dict.fromkeys(name for system in systems for name in system.metrics)
    # A dict with the primary first keeps its place and drops its second mention.
    return list({primary: None, **names} if primary in names else names)


def metric_rows(
    systems: Sequence[SystemResult],
    comparisons: Sequence[Comparison],
    primary: str | None,
    heading: Heading = metric_heading,
) -> list[MetricRow]:
    """The table of systems: one row a metric, one cell a system, in the order of the systems.

    Args:
        systems: with their metrics.
        comparisons: of these systems; a best cell is marked where they distinguish one.
        primary: the metric of the first row; None for no such metric.
        heading: makes the heading of a row.
    """
    rows = []
    for name in metric_names(systems, primary):
        found = {system.name: system.metrics[name] for system in systems if name in system.metrics}
        # One number of decimals a row, so that its figures can be compared by eye.
        decimals = figures.common_decimals(list(found.values()))
        best = _best(comparisons, name, list(found))
        cells = tuple(cell(found.get(s.name), decimals, is_best=s.name == best) for s in systems)
        # Unit and direction are those of the metric, the same for every system.
        first = next(iter(found.values()))
        rows.append(MetricRow(name, heading(name), first.unit, first.higher_is_better, name == primary, cells))
    return rows


def difference_row(
    one: Comparison, unit: str, *, adjusted: float | None = None, heading: Heading = metric_heading
) -> DifferenceRow:
    """One difference.

    Args:
        one: the comparison.
        unit: of its metric.
        adjusted: where the comparison does not hold it itself.
        heading: makes the title of a metric.
    """
    # By the interval: more digits than it leaves certain would be noise.
    decimals = figures.decimals_for(one.low, one.high)
    among_all = one.adjusted_p_value if one.adjusted_p_value is not None else adjusted
    return DifferenceRow(
        candidate=one.candidate,
        baseline=one.baseline,
        title=heading(one.metric),
        unit=unit,
        difference=figures.signed(one.difference, decimals),
        interval=f"[{figures.signed(one.low, decimals)}, {figures.signed(one.high, decimals)}]",
        p_value=figures.p_value(one.p_value),
        adjusted="" if among_all is None else figures.p_value(among_all),
        word=one.verdict,
        tone=tone_of(one.verdict),
        rows_needed=one.rows_needed,
    )


def forgetting_rows(
    found: Forgetting, heading: Heading = metric_heading
) -> list[tuple[tuple[Cell, ...], DifferenceRow]]:
    """What was forgotten: for each metric the figures of the systems, and tuned less base."""
    rows = []
    for one in found.comparisons:
        metrics = [system.metrics[one.metric] for system in found.systems]
        decimals = figures.common_decimals(metrics)
        cells = tuple(cell(metric, decimals) for metric in metrics)
        rows.append((cells, difference_row(one, metrics[0].unit, heading=heading)))
    return rows


def cell(metric: Metric | None, decimals: int, *, is_best: bool = False) -> Cell:
    """A figure as a cell; without an interval where that has no width."""
    if metric is None:
        return Cell()
    interval = "" if metric.low == metric.high else figures.interval(metric.low, metric.high, decimals)
    return Cell(figures.number(metric.value, decimals), interval, is_best)


def _best(comparisons: Sequence[Comparison], metric: str, names: Sequence[str]) -> str | None:
    """The system whose interval of the difference to every other one shows that it is better."""
    beaten: set[tuple[str, str]] = set()
    for one in comparisons:
        if one.metric == metric and one.verdict == "better":
            beaten.add((one.candidate, one.baseline))
        elif one.metric == metric and one.verdict == "worse":
            beaten.add((one.baseline, one.candidate))
    # Best is only a system that is proved better than each other one; intervals that overlap name none.
    others = len(names) - 1
    return next((n for n in names if others and sum((n, other) in beaten for other in names) == others), None)
