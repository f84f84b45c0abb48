"""What a verdict rests on in figures, and what the other metrics say, in a sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, SystemResult
from luthier.ml.charts.metric_titles import metric_title, on_scale, start
from luthier.ml.evaluation.headline import finding, relation, short_names
from luthier.ml.evaluation.names import held_out_rows, listed, system_title

_OPENINGS = {
    "better": "Better than",
    "worse": "Worse than",
    NOT_DISTINGUISHABLE: "Not distinguishable from",
    "equal": "Equal to",
}


def primary_details(
    judged: SystemResult, found: Sequence[Comparison], results: Sequence[SystemResult]
) -> tuple[str, ...]:
    """One sentence a baseline: both values, the difference with its interval and p-value, and from how many rows.

    Where the two are not distinguishable it also says how many rows would settle it, or that this is not known.
    """
    by_name = {result.name: result for result in results}
    return tuple(_primary(judged, comparison, by_name[comparison.baseline], results) for comparison in found)


def further_details(
    comparisons: Sequence[Comparison], found: Sequence[Comparison], results: Sequence[SystemResult]
) -> tuple[str, ...]:
    """What the other metrics say: those that agree with the primary one in one sentence, then one for each finding.

    Args:
        comparisons: those of the judged system, of all metrics.
        found: those of the primary metric.
        results: all systems.
    """
    by_metric: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_metric.setdefault(comparison.metric, []).append(comparison)
    primary = _pattern(found)
    # What agrees with the primary metric comes first, even where others were found before.
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {primary: []}
    for name, own in by_metric.items():
        if name != found[0].metric:
            alike.setdefault(_pattern(own), []).append(name)
    texts = []
    for pattern, names in alike.items():
        if not names:
            continue
        titles = start(listed([metric_title(name) for name in names]))
        if pattern == primary:
            texts.append(f"{titles} {'says' if len(names) == 1 else 'say'} the same.")
        else:
            texts.append(f"{titles}: {_against_all(by_metric[names[0]], len(found), results)}.")
    return tuple(texts)


def _pattern(comparisons: Sequence[Comparison]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((comparison.baseline, finding(comparison)) for comparison in comparisons))


def _against_all(own: Sequence[Comparison], num_baselines: int, results: Sequence[SystemResult]) -> str:
    words = {finding(comparison) for comparison in own}
    if len(words) == 1 and len(own) == num_baselines > 1:
        which = "both" if num_baselines == 2 else f"all {num_baselines:,}"
        return f"{relation(own[0])} {which}"
    names = short_names(own, results, " in the prompt")
    return ", ".join(f"{relation(c)} {name}" for c, name in zip(own, names, strict=True))


def _primary(
    judged: SystemResult, comparison: Comparison, baseline: SystemResult, results: Sequence[SystemResult]
) -> str:
    # Two significant digits of the largest number that is shown, with 1 to 4 decimals.
    largest = max(abs(comparison.difference), abs(comparison.low), abs(comparison.high))
    decimals = min(4, max(1, 1 - math.floor(math.log10(largest)))) if largest > 0 else 2
    metric = judged.metrics[comparison.metric]
    against = baseline.metrics[comparison.metric].value
    opening = f"{_OPENINGS[finding(comparison)]} {system_title(baseline, results)}"
    values = f"{metric_title(comparison.metric)} {metric.value:.{decimals}f} against {against:.{decimals}f}"
    rows = held_out_rows(judged.num_samples)
    if finding(comparison) == "equal":
        return f"{opening}: {values} on {rows}; no number of rows can be named for a difference of 0."
    scale = on_scale(metric.unit).strip(" ()")
    direction = f"{scale}; " if scale else ""
    direction += "" if metric.higher_is_better else "lower is better; "
    figures = (
        f"{comparison.difference:+.{decimals}f}, 95% interval {comparison.low:.{decimals}f} to "
        f"{comparison.high:.{decimals}f}, {_p_value(comparison.p_value)}; {rows}"
    )
    return f"{opening}: {values} ({direction}{figures}){_rows_needed(comparison, decimals)}."


def _rows_needed(comparison: Comparison, decimals: int) -> str:
    if comparison.verdict != NOT_DISTINGUISHABLE:
        return ""
    # Of a difference that is shown as 0.00, a number of rows would look absurd.
    if float(f"{comparison.difference:.{decimals}f}") == 0:
        return "; equal as far as these decimals go, so no number of rows that would settle it can be named"
    if comparison.rows_needed is None:
        return "; how many rows would settle it cannot be told from so few"
    return f"; about {_rounded(comparison.rows_needed)} held-out rows would settle a difference of this size"


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def _rounded(number: int) -> str:
    """Two digits are all that such an estimate can bear."""
    digits = max(0, len(str(number)) - 2)
    return f"{math.ceil(number / 10**digits) * 10**digits:,}"
