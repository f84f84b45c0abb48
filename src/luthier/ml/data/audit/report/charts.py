"""Which charts an audit has: drawn from the table, its profile and what the checks put into their details."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from luthier.core.results.audit import Audit, Finding
from luthier.ml.charts.page import Chart
from luthier.ml.data.audit.report.bars import bar_chart, length_chart
from luthier.ml.data.audit.report.map_chart import map_chart
from luthier.ml.data.audit.table import AuditTable

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
    if not table.frame.height:
        return None
    # A null means that tokens were not counted: the column is filled for all rows or for none.
    in_tokens = table.frame["num_tokens"].null_count() == 0
    column = table.frame["num_tokens"] if in_tokens else table.frame["text"].str.len_chars()
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
