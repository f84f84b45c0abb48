"""The charts of an audit report, drawn from the table, its profile and the details of the findings.

Bars with names and counts, the length histogram, and the map of prompts: coloured by label where rows have one, rows
with copies ringed. `audit_charts` decides which of them a file has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.results.audit import Audit, Finding
from luthier.ml.charts.drawing import short
from luthier.ml.charts.figures import count, percent
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import OTHERS, Axis, Bar, Bars, Mark, Note, Plot, Role, Series, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.charts.visible import visible
from luthier.ml.data.audit.base import has_prompts, lengths_of
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.rows.prompt_map import PromptMap, Region, prompt_map

WIDTH: Final = 460
NUM_BARS: Final = 10
_NAME_CHARACTERS: Final = 26
_BINS: Final = 40


def short_name(text: str) -> str:
    """A name of unknown origin on one line, at most 26 characters."""
    return short(visible(text), _NAME_CHARACTERS) or "(empty)"


def bar_chart(
    name: str, title: str, counts: Sequence[tuple[str, int]], *, what: str, whole: int, num_kinds: int, role: Role
) -> Chart:
    """Bars, longest first; of more than ten kinds the ten largest, and the caption says so.

    Args:
        name: id of the chart on its page.
        title: shown above it.
        counts: (name, count) with the largest first.
        what: what is counted, in the plural.
        whole: what the shares are of.
        num_kinds: how many kinds there are in all.
        role: colour of the bars.
    """
    shown = counts[:NUM_BARS]
    first = f"“{short_name(shown[0][0])}” has {count(shown[0][1])} {what}"
    first += f", the most of {count(num_kinds)}." if num_kinds > 1 else "."
    rest = f" The {len(shown)} largest are shown." if num_kinds > len(shown) else ""
    rows = [
        Bar(short_name(kind), value, f"{count(value)}  ({percent(value / whole)})" if whole else count(value), role)
        for kind, value in shown
    ]
    axis = Axis("", low=0.0, is_shown=False)
    described = f"{title}. {first}{rest}"
    chart = Bars(name, title, axis, rows, caption=f"{first}{rest}", description=described, width_pixels=WIDTH)
    return report_chart(chart)


def length_chart(lengths: npt.NDArray[np.int64], unit: str, limits: Mapping[str, float]) -> Chart:
    """How long rows are, on a logarithmic axis with marks.

    Args:
        lengths: int64 [rows], in `unit`.
        unit: what lengths are counted in.
        limits: name -> length where a line is drawn, such as the context of the model.
    """
    title = f"Length of rows in {unit}"
    filled = lengths[lengths > 0]
    num_empty = len(lengths) - len(filled)
    low, high = int(filled.min()), int(filled.max())
    # Empty rows have no place on a logarithmic axis; the caption counts them.
    edges = _edges(low, high)
    counts, _ = np.histogram(filled, bins=edges)
    reach = [low, high, *(value for value in limits.values() if value > 0)]
    text = (
        f"Half of the rows have {np.quantile(lengths, 0.5, method='nearest'):,.0f} {unit} or fewer; the shortest "
        f"has {int(lengths.min()):,}, the longest {int(lengths.max()):,}."
    )
    if num_empty:
        text += f" {num_empty:,} empty {'row is' if num_empty == 1 else 'rows are'} not drawn."
    chart = Plot(
        "chart-length",
        title,
        Axis(f"{unit} (logarithmic)", scale="log", low=min(reach) / 1.25, high=max(reach) * 1.25, ticks=_ticks(reach)),
        Axis("rows", low=0.0),
        # A column reaches from its edge to the next, so the last edge gets a height of 0.
        [Series("", points_of(edges, [*counts, 0]), "other-1", "columns")],
        marks=[_limit(name, value) for name, value in limits.items() if value > 0],
        caption=text,
        width_pixels=WIDTH,
    )
    return report_chart(chart)


def _limit(name: str, value: float) -> Mark:
    is_context = "context" in name
    return Mark(value, f"{name}, {value:,.0f}", role="tuned" if is_context else "base", is_dashed=not is_context)


def _ticks(reach: Sequence[float]) -> list[tuple[float, str]]:
    """Powers of ten, and 2 and 5 times those where there is room."""
    # Up to two and a half decades there is room for 1, 2 and 5 of each; beyond, for powers of ten alone.
    factors = (1, 2, 5) if max(reach) < 300 * min(reach) else (1,)
    return [(factor * 10.0**power, f"{factor * 10**power:,}") for power in range(13) for factor in factors]


def _edges(low: int, high: int) -> npt.NDArray[np.float64]:
    """Logarithmic bins that hold whole numbers each: none is empty only because no length fits in."""
    wide = np.geomspace(low, high + 1, min(_BINS, high + 1 - low) + 1)
    # Rounded edges may coincide for short lengths; unique() joins such bins.
    return np.unique(np.round(wide)).astype(np.float64) if high > low else np.array([low - 0.5, low + 0.5])


_COPIES: Final = ("exact_duplicate", "near_duplicate")
_MIN_POINTS: Final = 3
_PREFIX_SHOWN: Final = 60
_ROLES: Final[tuple[Role, ...]] = (*OTHERS, "base")


def map_chart(audit: Audit, table: AuditTable) -> Chart | None:
    """The map of the prompts (of the texts where rows have no prompt); None where there are fewer than three."""
    column = "prompt" if has_prompts(table) else "text"
    found = prompt_map(table.rows.texts(column))
    # All points in one place are no map, as where every row is the same.
    if len(found.positions) < _MIN_POINTS or not np.ptp(found.xy):
        return None
    copies = {line for finding in audit.findings if finding.check in _COPIES for line in finding.lines}
    what = "prompts" if column == "prompt" else "texts"
    series, said = _series(found, table.rows.take(found.positions, "line", "label"), copies)
    described = f"{_how(found, what)} {said}".strip()
    hidden = Axis("", is_shown=False)
    chart = Plot(
        "chart-map",
        f"Map of the {what}",
        hidden,
        hidden,
        series,
        notes=_regions(found),
        caption=described,
        width_pixels=WIDTH,
        height_pixels=400,
    )
    return report_chart(chart)


def _series(found: PromptMap, rows: pl.DataFrame, copies: Collection[int]) -> tuple[list[Series], str]:
    """A series for each class of label and one of rings for copies, and what colours and rings mean."""
    x, y = found.xy.T
    # In pixels: smaller the more there are, so that dense groups do not become one blot.
    radius = 2.6 if len(x) < 300 else 2.0 if len(x) < 1_500 else 1.6
    classes, said = _classes(rows["label"])
    series = [
        Series(short_name(name), points_of(x[members], y[members]), role, "dots", is_faint=True, radius_pixels=radius)
        for (name, members), role in zip(classes, _ROLES, strict=False)
    ]
    # The map may be a sample, so copies are matched by line and not by position.
    is_copy = np.isin(rows["line"].to_numpy(), np.fromiter(copies, dtype=np.int64, count=len(copies)))
    if is_copy.any():
        rings = points_of(x[is_copy], y[is_copy])
        series.append(Series("copy", rings, "tuned", "dots", is_open=True, radius_pixels=1.6 * radius))
        said += " Rings: surplus copies and near-copies of other rows."
    return series, said.strip()


def _regions(found: PromptMap) -> list[Note]:
    """The words of each region at its middle; of two that would overlap, or say the same, the one with more rows."""
    width, height = np.ptp(found.xy, axis=0)
    taken: list[Region] = []
    # Greedy, the largest first; the distances are about the width and the height of a label.
    for region in sorted(found.regions, key=lambda region: -region.num_points):
        if any(
            (abs(region.x - other.x) < 0.3 * width and abs(region.y - other.y) < 0.07 * height)
            or set(region.words) == set(other.words)
            for other in taken
        ):
            continue
        taken.append(region)
    return [Note(one.x, one.y, visible(" · ".join(one.words)), is_bold=True) for one in taken]


def _classes(labels: pl.Series) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Up to three largest labels and the rest, each with its places; one class where there are no labels."""
    there = labels.drop_nulls().value_counts(sort=True)
    if there.height < 2:
        return [("row", np.arange(labels.len()))], ""
    # Ties by name, as polars gives them in no fixed order: the same file draws the same chart.
    names = sorted(there.iter_rows(), key=lambda pair: (-pair[1], pair[0]))[:3]
    values = labels.to_list()
    classes = [(name, np.array([i for i, value in enumerate(values) if value == name])) for name, _ in names]
    kept = {name for name, _ in names}
    rest = np.array([i for i, value in enumerate(values) if value not in kept])
    if len(rest):
        classes.append(("other or none", rest))
    return classes, "Colours: labels."


def _how(found: PromptMap, what: str) -> str:
    drawn = len(found.positions)
    how_many = f"{count(drawn)} of {count(found.num_texts)} rows" if drawn < found.num_texts else f"{count(drawn)} rows"
    text = (
        f"{how_many}; {what} with the same words lie close together. Two dimensions keep "
        f"{percent(found.explained_share)} of the differences, so distances are a hint only."
    )
    if found.prefix:
        text += f" Left out, as nearly all begin with it: “{visible(found.prefix[:_PREFIX_SHOWN].strip())}”"
        text += "…" if len(found.prefix) > _PREFIX_SHOWN else ""
        text += f" ({count(len(found.prefix))} characters)."
    return text


_OUTLIERS: Final = {"short": "short under", "long": "long over"}


def audit_charts(audit: Audit, table: AuditTable) -> list[Chart]:
    """The charts for which there is something to draw, in the order of the page."""
    charts = [
        _lengths(audit, table),
        _labels(audit),
        _languages(audit),
        _clusters(audit),
        _personal_data(audit),
        map_chart(audit, table),
    ]
    return [chart for chart in charts if chart is not None]


def _found(audit: Audit, check: str) -> Iterator[Finding]:
    return (finding for finding in audit.findings if finding.check == check)


def _lengths(audit: Audit, table: AuditTable) -> Chart | None:
    if not table.height:
        return None
    in_tokens = table.has_tokens
    column = table.rows.column("num_tokens") if in_tokens else lengths_of(table.rows.texts("text"))
    lengths = column.to_numpy().astype(np.int64)
    if not lengths.any():
        return None
    limits: dict[str, float] = {}
    for finding in _found(audit, "length"):
        name, limit = _OUTLIERS.get(str(finding.details.get("sort"))), finding.details.get("limit")
        if name is not None and isinstance(limit, int | float):
            limits[name] = float(limit)
    for finding in _found(audit, "over_context") if in_tokens else ():
        context = finding.details.get("context_tokens")
        if isinstance(context, int):
            limits["context"] = float(context)
    return length_chart(lengths, "tokens" if in_tokens else "characters", limits)


def _labels(audit: Audit) -> Chart | None:
    labels = _counts(audit.profile.get("labels"))
    num_labels = audit.profile.get("num_labels", len(labels))
    for finding in _found(audit, "label_imbalance") if not labels else ():
        labels = _counts(finding.details.get("counts"))
        num_labels = finding.details.get("num_classes", len(labels))
    if not labels:
        return None
    return bar_chart(
        "chart-labels",
        "Labels",
        labels,
        what="rows",
        whole=audit.num_rows,
        num_kinds=int(num_labels),
        role="other-2",
    )


def _languages(audit: Audit) -> Chart | None:
    for finding in _found(audit, "language"):
        languages = _counts(finding.details.get("counts"))
        if not languages or finding.details.get("sort", "mix") != "mix":
            continue
        unknown = finding.details.get("undetermined")
        num_unknown = unknown if isinstance(unknown, int) else 0
        whole = sum(value for _, value in languages) + num_unknown
        shown = [*languages, ("undetermined", num_unknown)] if num_unknown else languages
        shown.sort(key=lambda pair: -pair[1])
        return bar_chart(
            "chart-languages",
            "Languages",
            shown,
            what="rows",
            whole=whole,
            num_kinds=len(shown),
            role="other-3",
        )
    return None


def _clusters(audit: Audit) -> Chart | None:
    for finding in _found(audit, "near_duplicate"):
        clusters = finding.details.get("clusters")
        sizes = [cluster for cluster in map(_cluster, clusters if isinstance(clusters, list) else []) if cluster]
        if not sizes:
            continue
        sizes.sort(key=lambda pair: -pair[1])
        num = finding.details.get("num_clusters", len(sizes))
        return bar_chart(
            "chart-clusters",
            "Largest clusters of near-duplicates",
            sizes,
            what="rows",
            whole=audit.num_rows,
            num_kinds=int(num),
            role="tuned",
        )
    return None


def _cluster(cluster: Any) -> tuple[str, int] | None:
    """The name of a cluster (its text, else its first line) and its size; None where the check gave neither."""
    if not isinstance(cluster, Mapping):
        return None
    lines = cluster.get("lines")
    size = cluster.get("size", len(lines) if isinstance(lines, list) else None)
    if not isinstance(size, int):
        return None
    name = cluster.get("excerpt") or (f"line {lines[0]}" if isinstance(lines, list) and lines else "")
    return str(name), size


def _personal_data(audit: Audit) -> Chart | None:
    kinds: dict[str, int] = {}
    for finding in _found(audit, "personal_data"):
        kind = str(finding.details.get("kind", "personal data"))
        kinds[kind] = kinds.get(kind, 0) + finding.count
    for finding in _found(audit, "secret"):
        kinds["secret"] = kinds.get("secret", 0) + finding.count
    counts = [(kind.replace("_", " "), value) for kind, value in kinds.items() if value]
    if not counts:
        return None
    counts.sort(key=lambda pair: -pair[1])
    return bar_chart(
        "chart-personal",
        "Personal data and secrets by kind",
        counts,
        what="rows",
        whole=audit.num_rows,
        num_kinds=len(counts),
        role="base",
    )


def _counts(found: Any) -> list[tuple[str, int]]:
    """(name, count), the largest first; empty where a check gave no such figures."""
    if not isinstance(found, Mapping):
        return []
    pairs = [(str(name), value) for name, value in found.items() if isinstance(value, int)]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
