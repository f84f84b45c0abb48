"""Rows that are longer than the model's context, so that training has to drop or cut them: an error."""

from __future__ import annotations

import numpy as np

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_rows, rows

_NAME = "over_context"


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """Rows whose text alone has more tokens than the context, the longest first; the chat template adds some more."""
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
            _NAME,
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
