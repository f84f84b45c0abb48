"""Values that name or reach a person: one finding a kind, with the values half hidden, since reports are passed on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np

from luthier.core.results.audit import Finding, Severity
from luthier.ml.data.audit.base import EXCERPT_CHARACTERS, AuditRequest, about_rows, rows
from luthier.ml.data.personal_data.find import (
    FindNames,
    find_personal_data,
    may_hold_personal_data,
    name_finder,
    why_not,
)
from luthier.ml.data.personal_data.masking import DEFAULT_KINDS
from luthier.ml.data.personal_data.recognizers import KINDS, Kind, Span

GRAVE_KINDS: Final[frozenset[Kind]] = frozenset(("card", "iban", "ssn"))
_MANY: Final = 0.01
_BATCH_ROWS: Final = 2_000
_NAMES: Final[dict[Kind, tuple[str, str]]] = {
    "email": ("e-mail address", "e-mail addresses"),
    "phone": ("telephone number", "telephone numbers"),
    "card": ("payment card number", "payment card numbers"),
    "iban": ("bank account (IBAN)", "bank accounts (IBAN)"),
    "ssn": ("US social security number", "US social security numbers"),
    "ip_address": ("IP address", "IP addresses"),
    "street": ("street address", "street addresses"),
    "name": ("name of a person", "names of people"),
}


def check(request: AuditRequest) -> Sequence[Finding]:
    """One finding for each kind that occurs, in a fixed order, and one more for rows where nothing makes it certain.

    Severity: warning; error where cards, bank accounts or social security numbers are in at least 1% of the rows, for
    then the file is a list of accounts and no text that mentions one; info where it is not certain. Names are searched
    where presidio is installed; where it is not, each finding's details say so under `names`.
    """
    texts, names_left_out = request.table.frame["text"], why_not()
    find_names = name_finder()
    if find_names is None:
        # One pass in Rust over the column; names have no pattern, so with a name finder every row is searched.
        candidates = np.flatnonzero(may_hold_personal_data(texts).to_numpy())
    else:
        candidates = np.arange(texts.len())
    found: dict[Kind, dict[int, list[Span]]] = defaultdict(dict)
    with request.progress.task("search personal data", len(candidates), "row") as task:
        for start in range(0, len(candidates), _BATCH_ROWS):
            batch = candidates[start : start + _BATCH_ROWS]
            for position, text in zip(batch.tolist(), texts.gather(batch).to_list(), strict=True):
                for span in find_personal_data(text, find_names):
                    found[span.kind].setdefault(position, []).append(span)
            task.advance(len(batch))
    findings = []
    for kind in KINDS:
        # By row: one certain value makes the whole row certain.
        certain = {at: spans for at, spans in found[kind].items() if any(span.is_certain for span in spans)}
        perhaps = {at: spans for at, spans in found[kind].items() if at not in certain}
        for by_row, is_certain in ((certain, True), (perhaps, False)):
            if by_row:
                findings.append(_finding(request, kind, by_row, find_names, names_left_out, is_certain=is_certain))
    return findings


def hidden(span: Span) -> str:
    """A value as reports show it: enough to recognise it, too little to use it."""
    value = span.value
    if span.kind == "email":
        local, _, domain = value.partition("@")
        return f"{local[:2] if len(local) > 3 else local[:1]}…@{domain}"
    if span.kind in ("street", "name"):
        return f"{value[:3]}…"
    return f"{value[:3]}…{value[-2:]}" if len(value) > 9 else f"{value[:2]}…"


def excerpt_with_hidden(text: str, spans: Sequence[Span], around: int) -> str:
    """A piece of the text around a place, with all of these values half hidden."""
    start = max(0, around - EXCERPT_CHARACTERS // 3)
    end = min(len(text), start + 2 * EXCERPT_CHARACTERS)
    parts, position = ["…" if start else ""], start
    for span in spans:
        if span.end <= start or span.start >= end:
            continue
        parts += [text[position : max(position, span.start)], hidden(span)]
        position = span.end
    return "".join([*parts, text[position:end]])


def _finding(
    request: AuditRequest,
    kind: Kind,
    by_row: dict[int, list[Span]],
    find_names: FindNames | None,
    names_left_out: str | None,
    *,
    is_certain: bool,
) -> Finding:
    table = request.table
    positions = list(by_row)
    num_values = sum(map(len, by_row.values()))
    num_distinct = len({span.value for spans in by_row.values() for span in spans})
    fraction = len(positions) / table.num_rows
    severity: Severity = "info"
    if is_certain:
        severity = "error" if kind in GRAVE_KINDS and fraction >= _MANY else "warning"
    excerpts, notes = {}, {}
    texts = table.frame["text"]
    for position in positions[:10]:
        text, spans = texts[position], by_row[position]
        excerpts[position] = excerpt_with_hidden(text, find_personal_data(text, find_names), spans[0].start)
        notes[position] = f"{_NAMES[kind][0]} {hidden(spans[0])}" + (f" and {len(spans) - 1} more" if spans[1:] else "")
    one, many = _NAMES[kind]
    held = ("holds" if len(positions) == 1 else "hold") if is_certain else "may hold"
    doubt = "" if is_certain else "; nothing beside them says so"
    look = "" if is_certain else "look at them first, then "
    option = "" if is_certain and kind in DEFAULT_KINDS else f" --mask {kind}"
    values = f"{num_values:,} {one if num_values == 1 else many}"
    details: dict[str, object] = {
        "kind": kind,
        "is_certain": is_certain,
        "num_values": num_values,
        "num_distinct_values": num_distinct,
    }
    if names_left_out is not None:
        details["names"] = f"names not searched: {names_left_out}"
    return about_rows(
        table,
        "personal_data",
        severity,
        positions,
        message=f"{rows(len(positions))} {held} {values} ({num_distinct:,} distinct){doubt}",
        fix=f"{look}mask them: luthier data repair {table.command_path} -o clean.jsonl --only personal_data{option}",
        notes=notes,
        excerpts=excerpts,
        details=details,
    )
