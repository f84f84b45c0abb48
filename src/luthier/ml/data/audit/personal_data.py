"""Values that name or reach a person, and secrets: keys, tokens and passwords.

One finding for each kind of personal data, with the values half hidden, since reports are passed on. One finding about
all secrets, always an error, in which no secret is in full.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Final, TypeVar

import numpy as np
import polars as pl

from luthier.core.errors import WorkError
from luthier.core.results.audit import Finding, Severity
from luthier.core.system.extras import install_command
from luthier.ml.data.audit.base import EXCERPT_CHARACTERS, AuditRequest, about_rows, rows
from luthier.ml.data.personal_data.find import find_personal_data, may_hold_personal_data, name_finder, why_not
from luthier.ml.data.personal_data.masking import DEFAULT_KINDS
from luthier.ml.data.personal_data.recognizers import KINDS, Kind, Span
from luthier.ml.data.personal_data.secrets import Secret, find_secrets, masked_secret, may_hold_secrets

GRAVE_KINDS: Final[frozenset[Kind]] = frozenset(("card", "iban", "ssn", "national_id"))
_MANY: Final = 0.01
_NUM_SHOWN: Final = 10
_NAMES: Final[dict[Kind, tuple[str, str]]] = {
    "email": ("e-mail address", "e-mail addresses"),
    "phone": ("telephone number", "telephone numbers"),
    "card": ("payment card number", "payment card numbers"),
    "iban": ("bank account (IBAN)", "bank accounts (IBAN)"),
    "ssn": ("US social security number", "US social security numbers"),
    "national_id": ("national identity number", "national identity numbers"),
    "ip_address": ("IP address", "IP addresses"),
    "street": ("street address", "street addresses"),
    "name": ("name of a person", "names of people"),
}


def check_personal_data(request: AuditRequest) -> Sequence[Finding]:
    """Values that name or reach a person: one finding a kind, with the values half hidden, since reports are passed on.

    Kinds come in a fixed order, each with one more finding for rows where nothing makes it certain.

    Severity: warning; error where cards, bank accounts, social security or national identity numbers are in at least 1%
    of the rows, for then the file is a list of accounts and no text that mentions one; info where it is not certain.
    Names are searched where presidio is installed; where it is not, each finding's details say so under `names`.
    """
    names_left_out = why_not()
    table = request.table
    found: dict[tuple[Kind, bool], _Found] = defaultdict(_Found)
    with request.progress.task("search personal data", table.height, "row") as task:
        for start, part in table.rows.map(_found_in, "text", "tools", shared=(names_left_out,), advance=task.advance):
            for key, one in part.items():
                found[key].extend(one, start)
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

    def extend(self, part: _Found, start: int) -> None:
        """Add the rows of a part that begins at position `start`."""
        self.positions.extend(start + at for at in part.positions)
        self.values.extend(part.values)
        for at in list(part.notes)[: max(0, _NUM_SHOWN - len(self.notes))]:
            self.notes[start + at], self.excerpts[start + at] = part.notes[at], part.excerpts[at]


def _found_in(part: pl.DataFrame, names_left_out: str | None) -> dict[tuple[Kind, bool], _Found]:
    """The rows of a part, by kind and whether it is certain.

    Raises:
        WorkError: names can be searched in this process and not where the work began, or the other way round.
    """
    find_names = name_finder()
    if (find_names is None) != (names_left_out is not None):
        raise WorkError(
            f"names of people: {why_not() or 'can be searched here'}; where the work began: "
            f"{names_left_out or 'can be searched there'}",
            expected="presidio and its spaCy model on all machines of the cluster, or on none",
            do="install the same packages on all machines",
        )
    # Names have no pattern, so with a name finder every row is searched; else one pass in Rust over the column.
    may_hold = may_hold_personal_data if find_names is None else _any_text
    found: dict[tuple[Kind, bool], _Found] = defaultdict(_Found)
    for at, text, spans in _rows_with(part, may_hold, partial(find_personal_data, find_names=find_names)):
        _add_row(found, at, text, spans)
    return found


def _any_text(texts: pl.Series) -> pl.Series:
    return texts.is_not_null()


_Value = TypeVar("_Value", Span, Secret)


def _rows_with(
    part: pl.DataFrame,
    may_hold: Callable[[pl.Series], pl.Series],
    find: Callable[[str], Sequence[_Value]],
) -> Iterator[tuple[int, str, list[_Value]]]:
    """Position, text and values of each row in which any are found; the tools of a row follow its text.

    Args:
        part: rows with `text` and `tools`.
        may_hold: booleans, false only where nothing would be found.
        find: the values of a text.
    """
    texts, tools = part["text"], part["tools"]
    # Most rows have one of few sets of tools, so each set is searched once.
    sets = tools.drop_nulls().unique()
    in_tools = {one: found for one in sets.filter(may_hold(sets)).to_list() if (found := find(one))}
    is_candidate = may_hold(texts)
    if in_tools:
        is_candidate |= tools.is_in(list(in_tools)).fill_null(value=False)
    candidates = is_candidate.arg_true()
    shown = zip(candidates.to_list(), texts.gather(candidates), tools.gather(candidates), strict=True)
    for at, text, own in shown:
        values, whole = list(find(text)), text
        if own in in_tools:
            behind = len(text) + 1
            values += [replace(one, start=one.start + behind, end=one.end + behind) for one in in_tools[own]]
            whole = f"{text}\n{own}"
        if values:
            yield at, whole, values


def _add_row(found: dict[tuple[Kind, bool], _Found], position: int, text: str, spans: Sequence[Span]) -> None:
    by_kind: dict[Kind, list[Span]] = defaultdict(list)
    for span in spans:
        by_kind[span.kind].append(span)
    for kind, mine in by_kind.items():
        # By row: one certain value makes the whole row certain.
        one = found[kind, any(span.is_certain for span in mine)]
        one.positions.append(position)
        # Numbers instead of the values: 8 bytes each, the same in every process.
        one.values.extend(_number_of(span.value) for span in mine)
        if len(one.notes) < _NUM_SHOWN:
            one.excerpts[position] = excerpt_with_hidden(text, spans, mine[0].start)
            more = f" and {len(mine) - 1} more" if mine[1:] else ""
            one.notes[position] = f"{_NAMES[kind][0]} {hidden(mine[0])}{more}"


def _number_of(value: str) -> int:
    digest = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


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
    doubt = "" if is_certain else "; nothing near them confirms it"
    look = "" if is_certain else "check them first, then "
    option = "" if is_certain and kind in DEFAULT_KINDS else f" --mask {kind}"
    values = f"{num_values:,} {one if num_values == 1 else many}"
    details: dict[str, object] = {
        "kind": kind,
        "is_certain": is_certain,
        "num_values": num_values,
        "num_distinct_values": num_distinct,
    }
    if names_left_out is not None:
        details["names"] = f"names not searched: {names_left_out} ({install_command('names')})"
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


def check_secrets(request: AuditRequest) -> Sequence[Finding]:
    """Keys, tokens and passwords: one finding, always an error, in which no secret is in full.

    details: how many of each kind.
    """
    table = request.table
    positions = array("q")
    kinds: Counter[str] = Counter()
    notes: dict[int, str] = {}
    excerpts: dict[int, str] = {}
    with request.progress.task("search secrets", table.height, "row") as task:
        for start, found in table.rows.map(_secrets_in, "text", "tools", advance=task.advance):
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
    found: list[_SecretRow] = []
    for at, text, secrets in _rows_with(part, may_hold_secrets, find_secrets):
        note = shown = ""
        if len(found) < _NUM_SHOWN:
            note = "; ".join(f"{secret.kind}: {masked_secret(secret.value)}" for secret in secrets[:3])
            shown = _secret_excerpt(text, secrets)
        found.append(_SecretRow(at, tuple(secret.kind for secret in secrets), note, shown))
    return found


def _secret_excerpt(text: str, secrets: Sequence[Secret]) -> str:
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
