"""The parts of an evaluation's page: its tables and charts, and the samples, searched, filtered and sorted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import Depends, Query

from luthier.core.errors import RequestError
from luthier.core.evaluation import Comparison, Evaluation, Metric, Verdict
from luthier.core.results.suite import Confusion
from luthier.core.text.written_numbers import typed_number
from luthier.ml.charts.judged_rows import (
    DifferenceRow,
    MetricRow,
    difference_row,
    metric_axis,
    metric_heading,
    on_scale,
    units_of,
)
from luthier.ml.charts.judged_rows import metric_rows as rows_of
from luthier.ml.charts.spec import OTHERS, IntervalRow, Intervals, OwnName, Plot, Role
from luthier.ml.evaluation.plain_names import listed_names, names_in, renamed
from luthier.ml.evaluation.result_views import (
    BETTER,
    KINDS,
    MAX_CONFUSION_LABELS,
    ORDERS,
    Better,
    Kind,
    Order,
    Roles,
    SampleFilter,
    SampleRow,
    bar_mark,
    choose_rows,
    confusions,
    metric_names,
    rows_chart,
    scored_metrics,
)
from luthier.platform.ui.i18n.environments import words
from luthier.platform.ui.i18n.language import ENGLISH


def main_details(verdict: Verdict) -> tuple[Sequence[str], Sequence[str]]:
    """The figures behind the headline, and what else was found."""
    return verdict.details[: verdict.num_primary_details], verdict.details[verdict.num_primary_details :]


def in_language(evaluation: Evaluation, language: str) -> Evaluation:
    """The evaluation with names of ours, such as that of a baseline, in the language of a page; sentences stay."""
    if language == ENGLISH:
        return evaluation
    return renamed(evaluation, names_in(evaluation.systems, words(language)))


def listed_in_language(names: Sequence[str], language: str) -> Sequence[str]:
    """The same for a list of evaluations, which has the names of their systems alone."""
    return names if language == ENGLISH else listed_names(names, words(language))


def metric_rows(evaluation: Evaluation) -> list[MetricRow]:
    """The table of systems: one row a metric, one cell a system, in the order of the systems."""
    primary = None if evaluation.verdict is None else evaluation.verdict.metric
    return rows_of(evaluation.systems, evaluation.comparisons, primary)


def difference_rows(comparisons: Sequence[Comparison], metrics: dict[str, Metric], roles: Roles) -> list[DifferenceRow]:
    """Those of the candidate first, in the order of the metrics.

    Args:
        comparisons: Of two systems each.
        metrics: A figure of each, for its unit.
        roles: Which system is the candidate, and which are the others.
    """
    order = {name: place for place, name in enumerate(metrics)}
    ordered = sorted(comparisons, key=lambda c: (c.candidate != roles.candidate, order.get(c.metric, len(order))))
    return [difference_row(one, metrics[one.metric].unit if one.metric in metrics else "") for one in ordered]


def units(evaluation: Evaluation) -> dict[str, Metric]:
    """A figure of each metric, that of the verdict first."""
    found = {name: metric for system in evaluation.systems for name, metric in system.metrics.items()}
    return {name: found[name] for name in metric_names(evaluation)}


def charts(evaluation: Evaluation, roles: Roles) -> list[Intervals | Plot]:
    """The differences in the metric of the verdict, each metric over all systems, and the curve over training rows.

    A metric in which all systems are equal has no chart: there would be nothing to see.
    """
    made: list[Intervals | Plot] = []
    colours, found = _colours(evaluation, roles), units(evaluation)
    name = "" if evaluation.verdict is None else evaluation.verdict.metric
    mine = [c for c in evaluation.comparisons if c.metric == name and c.candidate == roles.candidate]
    if mine and name in found:
        rows = [IntervalRow(f"minus {c.baseline}", c.difference, c.low, c.high, colours[c.baseline]) for c in mine]
        title = f"{metric_heading(name)}: {roles.candidate} minus each other system"
        axis = metric_axis(name, "difference", found[name].unit, of_differences=True)
        side = "right" if found[name].higher_is_better else "left"
        caption = f"Better is to the {side} of zero; an interval across zero is inconclusive."
        made.append(Intervals("differences", title, axis, rows, zero=True, caption=caption))
    for metric, first in found.items():
        systems = [(system.name, system.metrics[metric]) for system in evaluation.systems if metric in system.metrics]
        if len({(m.value, m.low, m.high) for _, m in systems}) == 1 and len(systems) > 1:
            continue
        rows = [IntervalRow(OwnName(system), m.value, m.low, m.high, colours[system]) for system, m in systems]
        direction = "higher" if first.higher_is_better else "lower"
        axis = metric_axis(metric, metric_heading(metric), first.unit)
        title = f"{metric_heading(metric)} of each system"
        limit, caption = bar_mark(evaluation.verdict, metric), f"{direction} is better"
        made.append(Intervals(f"metric-{metric}", title, axis, rows, caption=caption, limit=limit))
    if (by_rows := rows_chart(evaluation.verdict, title=metric_heading(name) if name else "")) is not None:
        made.append(by_rows)
    return made


def confusion_tables(evaluation: Evaluation, roles: Roles) -> list[tuple[str, Confusion]]:
    """Of each model, the candidate first; labels beyond the 12 that most rows have are one. Empty without labels."""
    from luthier.ml.evaluation.metrics.classification import joined_labels

    return [(name, joined_labels(found, MAX_CONFUSION_LABELS)) for name, found in confusions(evaluation, roles)]


def label_confidence_charts(evaluation: Evaluation, roles: Roles) -> list[Plot]:
    """Reliability, and what can be answered alone; none where no system has probabilities of labels."""
    from luthier.ml.evaluation.label_confidence import confidence_plots

    return confidence_plots(evaluation.label_confidence, _colours(evaluation, roles))


def _colours(evaluation: Evaluation, roles: Roles) -> dict[str, Role]:
    others = [s.name for s in evaluation.systems if s.name not in (roles.candidate, roles.baseline)]
    colours: dict[str, Role] = {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(others)}
    colours[roles.candidate] = "tuned"
    if roles.baseline is not None:
        colours[roles.baseline] = "base"
    return colours


_PAGE: Final = 10
_Text = Annotated[str, Query(max_length=500)]


def _asked(
    q: _Text = "",
    metric: _Text = "",
    better: _Text = "",
    kind: _Text = "",
    low: _Text = "",
    high: _Text = "",
    order: _Text = "worst",
    marks: _Text = "reference",
) -> dict[str, str]:
    asked = {"q": q, "metric": metric, "better": better, "kind": kind, "low": low, "high": high, "order": order}
    return asked | {"marks": marks}


SamplesAsked = Annotated[dict[str, str], Depends(_asked)]
"""The dependency of handlers that select samples."""
PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]


def samples_shown(
    evaluation: Evaluation,
    who: Roles,
    asked: dict[str, str],
    number: int,
    address: str,
    *,
    kept: Mapping[str, str] | None = None,
    decimal_mark: str = ".",
) -> dict[str, Any]:
    """The values of the part of a page that shows answers beside each other, filtered and by page.

    Args:
        evaluation: The evaluation.
        who: Which systems are shown in which role.
        asked: The fields of the filter, as the address has them.
        number: Of the page, from 1; the last page where it is beyond that.
        address: Of the page that the part belongs to.
        kept: Further fields of the addresses of other pages.
        decimal_mark: That of the page, in which the ends of a range are typed.
    """
    metrics = scored_metrics(evaluation)
    error = None
    try:
        choice = _choice(asked, metrics, decimal_mark)
    except RequestError as wrong:
        error, choice = wrong, SampleFilter(metric=metrics[0] if metrics else None)
    rows = choose_rows(evaluation, who, choice)
    # Ceiling division; an empty result still has one (empty) page.
    num_pages = max(1, -(-len(rows) // _PAGE))
    # A filter may shorten the list below the page that the address names.
    number = min(number, num_pages)
    shown = rows[(number - 1) * _PAGE : number * _PAGE]
    first = {key: value for key, value in asked.items() if value} | dict(kept or {})
    units = units_of(evaluation.systems)
    return {
        "evaluation": evaluation,
        "who": who,
        "error": error,
        "asked": asked | {"metric": choice.metric or "", "order": choice.order},
        "scored": [(name, metric_heading(name)) for name in metrics],
        "title_of": metric_heading,
        "scale_of": lambda name: on_scale(units.get(name, "")),
        "rows": [(row, _outputs(evaluation, who, row, asked["marks"])) for row in shown],
        "num_found": len(rows),
        "num_rows": max((len(system.samples) for system in evaluation.systems), default=0),
        "page": number,
        "num_pages": num_pages,
        "first_number": (number - 1) * _PAGE + 1,
        "address": address,
        "page_address": lambda to: f"{address}?{urlencode(first | {'page': str(to)})}#samples",
    }


def _choice(asked: dict[str, str], metrics: list[str], decimal_mark: str) -> SampleFilter:
    """The checked request.

    Raises:
        RequestError: A value is none of those allowed, or an end of the range is no number.
    """
    for name, allowed in (("better", BETTER), ("kind", KINDS), ("order", ORDERS), ("metric", ("", *metrics))):
        if asked[name] not in allowed:
            raise RequestError(
                f"{name}={asked[name]!r}",
                expected=f"one of {', '.join(repr(word) for word in allowed)}",
                do="choose from the list",
            )
    better: Better = asked["better"]  # type: ignore[assignment]
    kind: Kind = asked["kind"]  # type: ignore[assignment]
    order: Order = asked["order"]  # type: ignore[assignment]
    return SampleFilter(
        metric=asked["metric"] or (metrics[0] if metrics else None),
        words=asked["q"],
        better=better,
        kind=kind,
        low=_end("From", asked["low"], decimal_mark),
        high=_end("To", asked["high"], decimal_mark),
        order=order,
    )


_MAX_MARKED: Final = 8_000


def _end(name: str, text: str, decimal_mark: str) -> float | None:
    if not text.strip():
        return None
    try:
        found = typed_number(text, decimal_mark)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise RequestError(f"{name} {text!r}", expected="a number such as 0.5", do="correct it, or leave it empty")
    return found


def _outputs(evaluation: Evaluation, who: Roles, row: SampleRow, marks: str) -> list[dict[str, Any]]:
    """What each system wrote, and its tool calls. spans: of `word_diff`; None where it is shown without marks."""
    from luthier.ml.data.diff.row_changes import word_diff

    against = row.samples.get(who.baseline or "") if marks == "baseline" else None
    other = row.reference if marks == "reference" else None if against is None else against.output
    outputs = []
    for system in evaluation.systems:
        if (sample := row.samples.get(system.name)) is not None:
            spans = None
            # The word diff is quadratic in the number of words: long texts are shown without marks.
            if other and sample is not against and 0 < len(sample.output) <= _MAX_MARKED >= len(other):
                spans = word_diff(other, sample.output)
            functions = [call.get("function") for call in sample.tool_calls]
            calls = [f"{one.get('name')} {one.get('arguments')}" for one in functions if isinstance(one, dict)]
            outputs.append({"system": system, "sample": sample, "spans": spans, "calls": calls})
    return outputs
