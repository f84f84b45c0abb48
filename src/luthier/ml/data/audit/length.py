"""How long the rows are, which are far shorter or longer than the rest, and which are longer than the model's context.

Lengths spread over orders of magnitude, so outliers are found on their logarithms by the modified z-score (Iglewicz and
Hoaglin, How to Detect and Handle Outliers, 1993): farther from the median than 3.5 times the median absolute deviation
(scaled by 1.4826 to that of a normal distribution), and at least 3 times the median or a third of it, so that rows
which are all nearly alike have no outliers. A note; a warning where a row is 10 times as long as the median or a tenth
of it, since such rows fill memory or teach next to nothing. Rows longer than the context are an error: training has to
drop or cut them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_file, about_rows, lengths_of, rows
from luthier.ml.data.audit.table import AuditTable

_LENGTH: Final = "length"
_OVER_CONTEXT: Final = "over_context"
MAX_DEVIATIONS: Final = 3.5
MIN_FACTOR: Final = 3.0
GRAVE_FACTOR: Final = 10.0
FEWEST_ROWS: Final = 20
_NUM_BINS: Final = 30
_QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)

Lengths = npt.NDArray[np.int64]


def check_length(request: AuditRequest) -> list[Finding]:
    """How long the rows are, and which are far shorter or longer than the rest.

    The distribution (always), and outliers too short and too long (details.sort: distribution, short, long).
    """
    table = request.table
    if not table.height:
        return []
    counts = table.rows.column("num_tokens") if table.has_tokens else lengths_of(table.rows.texts("text"))
    unit = "tokens" if table.has_tokens else "characters"
    lengths = counts.cast(int).to_numpy()
    return [_distribution(lengths, unit), *_outliers(table, lengths, unit)]


def _distribution(lengths: Lengths, unit: str) -> Finding:
    quantiles = {f"q{round(100 * q):02d}": int(np.quantile(lengths, q, method="nearest")) for q in _QUANTILES}
    edges, counts = _histogram(lengths)
    details: dict[str, Any] = {
        "sort": "distribution",
        "unit": unit,
        "mean": float(lengths.mean()),
        "total": int(lengths.sum()),
        "quantiles": quantiles,
        "histogram": {"edges": edges, "counts": counts},
    }
    message = (
        f"rows have {quantiles['q50']:,} {unit} in the median, 5% to 95%: {quantiles['q05']:,} to "
        f"{quantiles['q95']:,}, longest {quantiles['q100']:,}"
    )
    message += "" if unit == "tokens" else " (name a model to have tokens counted)"
    return about_file(
        _LENGTH, "info", message=message, fix="nothing: this shows how long the rows are", details=details
    )


def _histogram(lengths: Lengths) -> tuple[list[float], list[int]]:
    """Bins of equal width on the logarithm, empty rows counted as length 1. edges: one more than counts."""
    logs = np.log(np.maximum(lengths, 1))
    low, high = float(logs.min()), float(logs.max())
    if high - low < 1e-9:
        # All lengths are equal: a histogram needs a range of some width.
        high = low + np.log(2)
    counts, edges = np.histogram(logs, bins=_NUM_BINS, range=(low, high))
    return [float(edge) for edge in np.exp(edges)], [int(count) for count in counts]


def _outliers(table: AuditTable, lengths: Lengths, unit: str) -> Iterator[Finding]:
    if len(lengths) < FEWEST_ROWS:
        return
    logs = np.log(np.maximum(lengths, 1))
    median = float(np.median(logs))
    # Median absolute deviation: outliers themselves hardly move it, unlike a standard deviation.
    deviation = 1.4826 * float(np.median(np.abs(logs - median)))
    limit = max(MAX_DEVIATIONS * deviation, float(np.log(MIN_FACTOR)))
    for sort, distance in (("short", median - logs), ("long", logs - median)):
        positions = np.flatnonzero(distance > limit)
        if not len(positions):
            continue
        positions = positions[np.argsort(-distance[positions], kind="stable")]
        is_grave = float(distance[positions[0]]) >= float(np.log(GRAVE_FACTOR))
        middle = round(float(np.exp(median)))
        bound = float(np.exp(median + (limit if sort == "long" else -limit)))
        yield about_rows(
            table,
            _LENGTH,
            "warning" if is_grave else "info",
            positions,
            message=f"{rows(len(positions))} far {sort}er than the rest: {'over' if sort == 'long' else 'under'} "
            f"{bound:,.0f} {unit}, where the median is {middle:,}",
            fix="check them: cut or split what is too long, remove what is too short to learn from",
            notes={int(at): f"{int(lengths[at]):,} {unit}" for at in positions[:5]},
            details={"sort": sort, "unit": unit, "limit": bound, "median": middle},
        )


def check_over_context(request: AuditRequest) -> list[Finding] | Skipped:
    """Rows that are longer than the model's context, so that training has to drop or cut them: an error.

    Those whose text and tools alone have more tokens, the longest first; the chat template adds some more.
    """
    table = request.table
    if request.context_tokens is None or request.model is None:
        return Skipped("no model is named, so neither its context nor tokens are known")
    if not table.has_tokens:
        return Skipped(f"the tokens of {request.model} were not counted")
    lengths = table.rows.column("num_tokens").cast(int).to_numpy()
    positions = np.flatnonzero(lengths > request.context_tokens)
    if not len(positions):
        return []
    positions = positions[np.argsort(-lengths[positions], kind="stable")]
    return [
        about_rows(
            table,
            _OVER_CONTEXT,
            "error",
            positions,
            message=f"{rows(len(positions))} with more tokens than the {request.context_tokens:,} that "
            f"{request.model} can see; the longest has {lengths[positions[0]]:,} (a chat template adds a few to each)",
            fix="split these rows, remove them (data repair --only over_context), or let the recipe say what to do: "
            "on_overlong: drop or truncate",
            notes={int(at): f"{int(lengths[at]):,} tokens" for at in positions[:5]},
            details={"context_tokens": request.context_tokens, "longest_tokens": int(lengths[positions[0]])},
        )
    ]
