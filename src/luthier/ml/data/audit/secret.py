"""Keys, tokens and passwords: one finding, always an error, in which no secret is in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import EXCERPT_CHARACTERS, AuditRequest, about_rows, rows
from luthier.ml.data.personal_data.secrets import Secret, find_secrets, masked_secret, may_hold_secrets

_NUM_SHOWN: Final = 10


def check(request: AuditRequest) -> Sequence[Finding]:
    """One finding where any row holds a secret; details: how many of each kind."""
    table = request.table
    texts = table.frame["text"]
    candidates = np.flatnonzero(may_hold_secrets(texts).to_numpy())
    by_row: dict[int, list[Secret]] = {}
    with request.progress.task("search secrets", len(candidates), "row") as task:
        for position in candidates.tolist():
            if secrets := find_secrets(texts[position]):
                by_row[position] = secrets
            task.advance()
    if not by_row:
        return []
    kinds = Counter(secret.kind for secrets in by_row.values() for secret in secrets)
    num_secrets = kinds.total()
    named = ", ".join(f"{num:,} {kind}" for kind, num in kinds.most_common(4)) + (", ..." if len(kinds) > 4 else "")
    shown = list(by_row)[:_NUM_SHOWN]
    return [
        about_rows(
            table,
            "secret",
            "error",
            list(by_row),
            message=f"{rows(len(by_row))} with {num_secrets:,} {'secret' if num_secrets == 1 else 'secrets'}: {named}",
            fix=f"revoke them, then mask them: luthier data repair {table.command_path} -o clean.jsonl --only secret",
            notes={p: "; ".join(f"{s.kind}: {masked_secret(s.value)}" for s in by_row[p][:3]) for p in shown},
            excerpts={p: _excerpt(texts[p], by_row[p]) for p in shown},
            details={"kinds": dict(kinds.most_common()), "num_secrets": num_secrets},
        )
    ]


def _excerpt(text: str, secrets: Sequence[Secret]) -> str:
    """A piece of the text around its first secret, every secret masked."""
    # No secret ends before the first one begins, so the excerpt cannot begin inside of one.
    start = max(0, secrets[0].start - EXCERPT_CHARACTERS // 3)
    parts, position, end = ["…" if start else ""], start, start + EXCERPT_CHARACTERS
    for secret in secrets:
        if secret.start >= end:
            break
        parts += [text[position : secret.start], masked_secret(secret.value)]
        position = secret.end
    return "".join([*parts, text[position : max(end, position)]])
