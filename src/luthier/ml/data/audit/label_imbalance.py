"""Classes that are far from equally frequent: rare ones are learned badly, and accuracy hides it.

A warning where the largest class has at least 10 times the rows of the smallest, or where a class has fewer than 5 rows
(too few for a share of each in train, validation and held-out); else a note with the counts.
"""

from __future__ import annotations

import math
from typing import Final

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import (
    FEWEST_ROWS,
    FEWEST_ROWS_A_CLASS,
    MAX_CLASSES,
    AuditRequest,
    Skipped,
    about_file,
    class_counts,
    rows,
)

_NAME = "label_imbalance"
HIGHEST_RATIO: Final = 10.0


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """One finding about the file. details: counts, ratio (largest to smallest), entropy (normalised to 0..1)."""
    table = request.table
    found = class_counts(table)
    if found is None:
        return Skipped("the rows have no label, and their completions do not look like classes")
    num_classes, by_class = found
    counts = dict(sorted(by_class.items(), key=lambda item: (-item[1], item[0])))
    num_values = sum(counts.values()) or table.height - table.rows.column("label").null_count()
    if num_classes > len(counts) or num_values < FEWEST_ROWS:
        return Skipped(f"{num_classes:,} labels on {rows(num_values)}: too many, or too few rows, to be classes")
    ratio = max(counts.values()) / min(counts.values())
    rare = [name for name, num in counts.items() if num < FEWEST_ROWS_A_CLASS]
    largest, smallest = next(iter(counts)), next(reversed(counts))
    message = f"{len(counts):,} classes over {rows(num_values)}: {largest!r} has {counts[largest]:,}"
    if len(counts) == 1:
        message = f"all {rows(num_values)} with a class have the same one: {largest!r}"
    else:
        message += f", {smallest!r} has {counts[smallest]:,} ({ratio:.1f} to 1)"
    if rare:
        message += f"; {len(rare):,} classes have fewer than {FEWEST_ROWS_A_CLASS} rows"
    is_bad = ratio >= HIGHEST_RATIO or bool(rare) or len(counts) == 1
    details = {
        "counts": dict(list(counts.items())[:MAX_CLASSES]),
        "num_classes": len(counts),
        "num_without": table.height - num_values,
        "ratio": ratio,
        "entropy": _entropy(list(counts.values())),
        "rare": rare[:MAX_CLASSES],
    }
    return [
        about_file(
            _NAME,
            "warning" if is_bad else "info",
            message=message,
            fix="collect more of the rare classes, split with --stratify-by, and evaluate by macro F1 instead of "
            "accuracy"
            if is_bad
            else "nothing: the classes are balanced well enough",
            details=details,
        )
    ]


def _entropy(counts: list[int]) -> float:
    """Shannon entropy over its greatest possible value: 1 where all classes are equal, 0 for a single class."""
    if len(counts) < 2:
        return 0.0
    total = sum(counts)
    return -sum(num / total * math.log(num / total) for num in counts) / math.log(len(counts))
