"""Values that name or reach a person: one finding a kind, with the values half hidden, since reports are passed on."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from luthier.core.results.audit import Finding, Severity
from luthier.ml.data.audit.base import EXCERPT_CHARACTERS, AuditRequest, about_rows, rows
from luthier.ml.data.personal_data.find import find_personal_data, may_hold_personal_data, name_finder, why_not
from luthier.ml.data.personal_data.masking import DEFAULT_KINDS
from luthier.ml.data.personal_data.recognizers import KINDS, Kind, Span

GRAVE_KINDS: Final[frozenset[Kind]] = frozenset(("card", "iban", "ssn"))
_MANY: Final = 0.01
_NUM_SHOWN: Final = 10
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
    names_left_out, find_names = why_not(), name_finder()
    table = request.table
    found: dict[tuple[Kind, bool], _Found] = defaultdict(_Found)
    with request.progress.task("search personal data", table.height, "row") as task:
        for start, part in table.rows.parts("text"):
            texts = part["text"]
            if find_names is None:
                # One pass in Rust over the column; names have no pattern, so with a name finder every row is searched.
                candidates = np.flatnonzero(may_hold_personal_data(texts).to_numpy())
            else:
                candidates = np.arange(len(texts))
            for at, text in zip(candidates.tolist(), texts.gather(candidates).to_list(), strict=True):
                _add_row(found, start + at, text, find_personal_data(text, find_names))
            task.advance(part.height)
    findings = []
    for kind in KINDS:
        for is_certain in (True, False):
            if (kind, is_certain) in found:
                one = found[kind, is_certain]
                findings.append(_finding(request, kind, one, names_left_out, is_certain=is_certain))
    return findings


@dataclass
class _Found:
    """The rows with values of one kind, by position; of the first of them what the report shows.

    Attributes:
        positions: rows, ascending.
        values: hash of every value.
        excerpts: by row.
        notes: by row.
    """

    positions: array[int] = field(default_factory=lambda: array("q"))
    values: array[int] = field(default_factory=lambda: array("q"))
    excerpts: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)


def _add_row(found: dict[tuple[Kind, bool], _Found], position: int, text: str, spans: Sequence[Span]) -> None:
    by_kind: dict[Kind, list[Span]] = defaultdict(list)
    for span in spans:
        by_kind[span.kind].append(span)
    for kind, mine in by_kind.items():
        # By row: one certain value makes the whole row certain.
        one = found[kind, any(span.is_certain for span in mine)]
        one.positions.append(position)
        # Numbers instead of the values: 8 bytes each. Python's hash of a text is the same within one process.
        one.values.extend(hash(span.value) for span in mine)
        if len(one.notes) < _NUM_SHOWN:
            one.excerpts[position] = excerpt_with_hidden(text, spans, mine[0].start)
            more = f" and {len(mine) - 1} more" if mine[1:] else ""
            one.notes[position] = f"{_NAMES[kind][0]} {hidden(mine[0])}{more}"


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
    request: AuditRequest, kind: Kind, found: _Found, names_left_out: str | None, *, is_certain: bool
) -> Finding:
    table = request.table
    positions = np.asarray(found.positions, dtype=np.int64)
    num_values = len(found.values)
    num_distinct = len(np.unique(np.asarray(found.values, dtype=np.int64)))
    fraction = len(positions) / table.num_rows
    severity: Severity = "info"
    if is_certain:
        severity = "error" if kind in GRAVE_KINDS and fraction >= _MANY else "warning"
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
        notes=found.notes,
        excerpts=found.excerpts,
        details=details,
    )
