"""Keys, tokens and passwords: one finding, always an error, in which no secret is in full."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import EXCERPT_CHARACTERS, AuditRequest, about_rows, rows
from luthier.ml.data.personal_data.secrets import Secret, find_secrets, masked_secret, may_hold_secrets

_NUM_SHOWN: Final = 10


def check(request: AuditRequest) -> Sequence[Finding]:
    """One finding where any row holds a secret; details: how many of each kind."""
    table = request.table
    positions = array("q")
    kinds: Counter[str] = Counter()
    notes: dict[int, str] = {}
    excerpts: dict[int, str] = {}
    with request.progress.task("search secrets", table.height, "row") as task:
        for start, found in table.rows.map(_secrets_in, "text", advance=task.advance):
            for row in found:
                positions.append(start + row.at)
                kinds.update(row.kinds)
                if len(notes) < _NUM_SHOWN:
                    notes[start + row.at], excerpts[start + row.at] = row.note, row.excerpt
    if not positions:
        return []
    num_secrets = kinds.total()
    what = "secret" if num_secrets == 1 else "secrets"
    named = ", ".join(f"{num:,} {kind}" for kind, num in kinds.most_common(4)) + (", ..." if len(kinds) > 4 else "")
    return [
        about_rows(
            table,
            "secret",
            "error",
            positions,
            message=f"{rows(len(positions))} with {num_secrets:,} {what}: {named}",
            fix=f"revoke them, then mask them: luthier data repair {table.command_path} -o clean.jsonl --only secret",
            notes=notes,
            excerpts=excerpts,
            details={"kinds": dict(kinds.most_common()), "num_secrets": num_secrets},
        )
    ]


@dataclass(frozen=True, slots=True)
class _SecretRow:
    """A row with secrets.

    Attributes:
        at: its place in the part.
        kinds: of each secret.
        note: what the report shows; empty for rows that it does not show.
        excerpt: likewise.
    """

    at: int
    kinds: tuple[str, ...]
    note: str
    excerpt: str


def _secrets_in(part: pl.DataFrame) -> list[_SecretRow]:
    candidates = may_hold_secrets(part["text"]).arg_true()
    found: list[_SecretRow] = []
    for at, text in zip(candidates.to_list(), part["text"].gather(candidates).to_list(), strict=True):
        if not (secrets := find_secrets(text)):
            continue
        note = shown = ""
        if len(found) < _NUM_SHOWN:
            note = "; ".join(f"{secret.kind}: {masked_secret(secret.value)}" for secret in secrets[:3])
            shown = _excerpt(text, secrets)
        found.append(_SecretRow(at, tuple(secret.kind for secret in secrets), note, shown))
    return found


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
