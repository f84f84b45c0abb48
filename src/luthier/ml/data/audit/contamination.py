"""Rows of the training file that give away rows of the held-out file, so that a verdict on those would mean nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from luthier.core.results.audit import Finding, Severity
from luthier.ml.data.audit.base import (
    AuditRequest,
    Positions,
    Skipped,
    about_file,
    about_rows,
    excerpt,
    one_of_each,
    positions_where,
    rows,
)
from luthier.ml.data.audit.duplicates import THRESHOLD, comparable_texts
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.dedup.equal_values import Digests, column_digests, matches
from luthier.ml.data.dedup.near_duplicates import near_matches
from luthier.ml.data.dedup.ngram_overlap import MAX_TEXTS, ngram_overlap
from luthier.ml.data.files.row_frames import TextColumn

_SHOWN: Final = 80
_MUCH: Final = 0.5
_FIX: Final = (
    "`luthier data repair --against` takes these rows out of the training file; the held-out file stays as it is"
)
_SPLIT: Final = "split again with `luthier data split --group-by`, so that all rows of a document are on one side"


@dataclass(frozen=True, slots=True)
class _Leak:
    """Training rows that leak in one way.

    Attributes:
        kind: how they leak.
        severity: of the finding.
        positions: int64 [m], training rows, ascending.
        others: int64 [m], for each a held-out row.
        num_others: all held-out rows that leak in this way.
        says: what the rows do, for the message.
        fix: what to do about it.
        notes: by training row, what is shared.
        details: further figures of the finding.
    """

    kind: str
    severity: Severity
    positions: Positions
    others: Positions
    num_others: int
    says: str
    fix: str = _FIX
    notes: Mapping[int, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """One finding a kind of leak; a training row is reported under the gravest kind only.

    exact (error): the same content after normalisation. near (error): Jaccard similarity of at least 0.8 over
    three-word shingles. ngram (error): it holds a good part of a held-out row, such as a quotation of it
    (`ngram_overlap`). same_prompt (warning): the same prompt with another answer. same_source (warning): from a
    document that also gave held-out rows; where that is more than half of the training rows, a finding about the file,
    since taking out that many rows is no repair. near and ngram leave out the beginning that nearly all prompts share.
    What the assistant thought is compared only where a training row may quote a held-out one: another thought before
    the same answer hides no leak. Rows without text are not compared. lines are training rows. A held-out row of fewer
    than 29 words of which one in the middle was changed is below 0.8 and holds no long run: it is not seen (a lower
    threshold would take every other short question for a leak).

    details: kind, num_held_out_rows, held_out_fraction; of near also threshold; of ngram num_boilerplate_windows and
    num_held_out_rows_only_boilerplate (which this kind cannot see). Skipped without a held-out file.
    """
    if (held_out := request.held_out) is None:
        return Skipped("no held-out file given: --against")
    table = request.table
    texts, prefix = comparable_texts(table, thoughts=False)
    others = held_out.rows.texts("said", "text", without=prefix)
    leaks = [
        _same(table, held_out, "content_key", "exact", "error", "say exactly what a held-out row says"),
        _near(texts, others, request),
        _ngram(table.rows.texts("text", without=prefix), others, request),
        _same(table, held_out, "prompt_key", "same_prompt", "warning", "have the prompt of a held-out row"),
    ]
    leaks.append(_same_source(table, held_out))
    # From the gravest kind on: a row that is reported once is left out of the kinds that follow.
    taken = np.zeros(table.height, dtype=bool)
    findings = []
    for leak in leaks:
        is_new = ~taken[leak.positions]
        taken[leak.positions] = True
        if is_new.any():
            findings.append(_finding(table, held_out, leak, leak.positions[is_new], leak.others[is_new]))
    return findings


def _same(
    table: AuditTable, held_out: AuditTable, column: str, kind: str, severity: Severity, says: str, fix: str = _FIX
) -> _Leak:
    """Rows of equal value in a column; rows without text say nothing."""
    found = matches(_keyed(table, column), _keyed(held_out, column))
    return _Leak(kind, severity, found.positions, found.others, found.num_others, says, fix)


def _keyed(table: AuditTable, column: str) -> Digests:
    has_text = np.zeros(table.height, dtype=bool)
    # Rows of white space alone all have the same key, and would be reported as copies of each other.
    has_text[positions_where(table.rows, lambda part: part["text"].str.contains(r"\S"), "text")] = True
    return column_digests(table.rows, column, has_text)


def _near(texts: TextColumn, others: TextColumn, request: AuditRequest) -> _Leak:
    found = near_matches(texts, others, threshold=THRESHOLD, progress=request.progress)
    # Searched from the other side as well: the first search names one held-out row for each training row only.
    is_near = np.zeros(len(texts), dtype=bool)
    is_near[found.positions] = True
    back = near_matches(others, texts.where(is_near), threshold=THRESHOLD, progress=request.progress)
    return _Leak(
        "near",
        "error",
        found.positions,
        found.others,
        len(back.positions),
        "say nearly what a held-out row says",
        notes={
            position: f"{similarity:.2f} of its shingles (Jaccard) shared with "
            for position, similarity in zip(found.positions.tolist(), found.jaccards.tolist(), strict=True)
        },
        details={"threshold": THRESHOLD},
    )


def _ngram(texts: TextColumn, others: TextColumn, request: AuditRequest) -> _Leak:
    found = ngram_overlap(texts, others, progress=request.progress)
    # Of the held-out rows that one training row holds, the one is named of which it holds most.
    order = np.lexsort((found.others, -found.num_shared, found.positions))
    # The first of each run of equal positions: the held-out row with the most shared windows, then the lowest number.
    best = order[np.flatnonzero(np.diff(found.positions[order], prepend=-1))]
    notes = {
        int(found.positions[at]): f"{found.num_shared[at]:,} of the {found.num_windows[at]:,} runs of 13 words of "
        for at in best
    }
    return _Leak(
        "ngram",
        "error",
        found.positions[best],
        found.others[best],
        len(np.unique(found.others)),
        "contain much of a held-out row word for word",
        notes=notes,
        details={
            "num_boilerplate_windows": found.num_boilerplate,
            "boilerplate": f"runs of 13 words in more than {MAX_TEXTS} training rows are not counted",
            "num_held_out_rows_only_boilerplate": found.num_only_boilerplate,
        },
    )


def _same_source(table: AuditTable, held_out: AuditTable) -> _Leak:
    says = "come from a document that also gave held-out rows"
    return _same(table, held_out, "source", "same_source", "warning", says, _SPLIT)


def _finding(table: AuditTable, held_out: AuditTable, leak: _Leak, positions: Positions, others: Positions) -> Finding:
    details = {
        "kind": leak.kind,
        "num_held_out_rows": leak.num_others,
        "held_out_fraction": leak.num_others / held_out.num_rows,
        **leak.details,
    }
    message = (
        f"{rows(len(positions))} of the training file {leak.says} ({leak.kind}); that gives away "
        f"{leak.num_others:,} of the {rows(held_out.num_rows)} of {held_out.file} "
        f"({leak.num_others / held_out.num_rows:.1%})"
    )
    if leak.kind == "same_source" and len(positions) > _MUCH * table.num_rows:
        fix = f"{_SPLIT}; where the field names a collection rather than a document, this is not a leak"
        return about_file("contamination", leak.severity, message=message, fix=fix, details=details)
    shown = one_of_each(positions, others)
    other_of = dict(zip(positions.tolist(), others.tolist(), strict=True))
    notes = {}
    for position in map(int, shown[:5]):
        other = other_of[position]
        line, text = held_out.rows.take([other], "line", "text").row(0)
        name = held_out.id_of(line)
        notes[position] = f"{leak.notes.get(position, 'same as ')}{name}: {excerpt(text)[:_SHOWN]!r}"
    return about_rows(
        table,
        "contamination",
        leak.severity,
        shown,
        message=message,
        fix=leak.fix,
        notes=notes,
        details=details,
    )
