"""What a file holds in numbers, for the report and the card."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from luthier.ml.data.audit.table import AuditTable

_QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_NUM_LABELS: Final = 50


def profile_of(table: AuditTable) -> dict[str, Any]:
    """Lengths by quantile (characters, and tokens where they were counted), labels and sources by number of rows."""
    frame = table.frame
    found: dict[str, Any] = {"num_unreadable_rows": table.num_rows - frame.height}
    if not frame.height:
        return found
    found["text_characters"] = _quantiles(frame["text"].str.len_chars())
    for column in ("prompt", "completion"):
        if frame[column].null_count() < frame.height:
            found[f"{column}_characters"] = _quantiles(frame[column].str.len_chars().drop_nulls())
    if frame["num_tokens"].null_count() == 0:
        found["text_tokens"] = _quantiles(frame["num_tokens"])
        found["num_tokens"] = int(frame["num_tokens"].sum())
    labels = frame["label"].drop_nulls().value_counts(sort=True)
    if labels.height:
        found["num_labels"] = labels.height
        found["labels"] = dict(labels.head(_NUM_LABELS).iter_rows())
    sources = frame["source"].drop_nulls().n_unique()
    if sources:
        found["num_sources"] = sources
    return found


def _quantiles(values: pl.Series) -> dict[str, float]:
    made = {f"q{round(100 * q):02d}": float(values.quantile(q, "nearest") or 0) for q in _QUANTILES}
    return {"mean": float(values.mean() or 0), **made}  # type: ignore[arg-type]
