"""Rows that say what an earlier row says: exactly, after normalisation of case, white space and Unicode, or nearly.

Nearly: most of their three-word shingles are the same.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Positions, about_rows, excerpt, one_of_each, rows
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.dedup.equal_values import first_positions
from luthier.ml.data.dedup.near_duplicates import NearClusters, near_clusters
from luthier.ml.data.dedup.shingles import recall_at
from luthier.ml.data.files.row_frames import TextColumn
from luthier.ml.data.tokenise.shared_prefix import common_prefix

_MUCH: Final = 0.1


def check_exact_duplicates(request: AuditRequest) -> list[Finding]:
    """Rows that say exactly what an earlier row says, after normalisation of case, white space and Unicode form.

    One finding about all copies but the first of each: a warning, an error where they are 10% of the rows or more. A
    few copies weigh some rows double; from a tenth on the file is another one than its number of rows says, and
    validation rows drawn from it are in training. details: num_groups, largest_group (rows, the kept one counted).
    """
    table = request.table
    first = first_positions(table.rows, beside="learned_key")
    copies = np.flatnonzero(first != np.arange(len(first)))
    if not len(copies):
        return []
    originals, sizes = np.unique(first[copies], return_counts=True)
    fraction = len(copies) / table.num_rows
    shown = one_of_each(copies, first[copies])
    lines = table.lines
    return [
        about_rows(
            table,
            "exact_duplicate",
            "error" if fraction >= _MUCH else "warning",
            shown,
            message=f"{rows(len(copies))} ({fraction:.1%}) {'says' if len(copies) == 1 else 'say'} exactly what an "
            f"earlier row says: copies of {rows(len(originals))}, one of which occurs {int(sizes.max()) + 1:,} times",
            fix="`luthier data repair` keeps the first of each and removes the others",
            notes={int(p): f"same as {table.id_of(lines[int(first[p])])}" for p in shown[:5]},
            details={"num_groups": len(originals), "largest_group": int(sizes.max()) + 1},
        )
    ]


THRESHOLD: Final = 0.8
_NUM_CLUSTERS: Final = 10
_NUM_LINES: Final = 20
_BINS: Final = (0.8, 0.85, 0.9, 0.95, 1.0)


def check_near_duplicates(request: AuditRequest) -> list[Finding]:
    """Rows that say nearly what an earlier row says: most of their three-word shingles are the same.

    One finding, a warning, about the rows that are near to an earlier row which is kept. Rows are compared by all their
    text, without the beginning that nearly all prompts share (a system prompt would make every row like every other).
    Copies that exact_duplicate reports are not counted again. Each row counted has a Jaccard similarity of at least 0.8
    to a row that stays, so removing them loses no row that has no like. Rows with one long table or passage and another
    short question are near-duplicates by this measure, and are reported as such.

    details: threshold, recall_at_threshold (of the search, by design), num_clusters, clusters (the 10 largest: size,
    up to 20 lines, first excerpt), histogram (similarity to the kept row -> rows), num_kept_in_chains (rows that are
    linked to a cluster only through others and stay), num_unsettled (where there are any: rows of very long chains
    that stay, since they were not compared with all of it), shared_prefix (what was left out of the comparison).
    """
    table = request.table
    # Positions of the first row of each set of copies: the search runs on those alone.
    first = first_positions(table.rows, beside="learned_key")
    is_first = first == np.arange(len(first))
    distinct = np.flatnonzero(is_first)
    texts, prefix = comparable_texts(table)
    made = near_clusters(texts.where(is_first), threshold=THRESHOLD, progress=request.progress)
    dropped = np.flatnonzero(made.kept != np.arange(len(distinct)))
    if not len(dropped):
        return []
    lines = table.lines
    shown = one_of_each(distinct[dropped], made.groups[dropped])
    notes = {}
    for position in map(int, shown[:5]):
        place = int(np.searchsorted(distinct, position))
        other = table.id_of(lines[int(distinct[made.kept[place]])])
        notes[position] = f"{made.similarities[place]:.2f} of its shingles (Jaccard) shared with {other}"
    clusters, num_clusters = _largest(table, made, distinct)
    without = f", without the {len(prefix.split()):,} words that nearly all prompts begin with" if prefix else ""
    return [
        about_rows(
            table,
            "near_duplicate",
            "warning",
            shown,
            message=f"{rows(len(dropped))} ({len(dropped) / table.num_rows:.1%}) nearly {_repeat(len(dropped))} an "
            f"earlier row (Jaccard similarity of 0.8 or more over three-word shingles{without}), "
            f"in {num_clusters:,} {'cluster' if num_clusters == 1 else 'clusters'}",
            fix="`luthier data repair` keeps one of each where answers and tools are the same; where rows share a "
            "passage and differ in the question on purpose, leave them, and keep each cluster on one side of a split",
            notes=notes,
            details={
                "threshold": THRESHOLD,
                "recall_at_threshold": round(recall_at(THRESHOLD), 3),
                "num_clusters": num_clusters,
                "clusters": clusters,
                "histogram": _histogram(made.similarities[dropped]),
                "num_kept_in_chains": _num_chained(made) - made.num_unsettled,
                **({"num_unsettled": made.num_unsettled} if made.num_unsettled else {}),
                "shared_prefix": excerpt(prefix),
            },
        )
    ]


def comparable_texts(table: AuditTable, *, thoughts: bool = True) -> tuple[TextColumn, str]:
    """The texts by which rows are compared, and the common beginning of prompts that was taken off them.

    Args:
        table: the file.
        thoughts: whether what the assistant thought is compared, too.
    """
    prefix = common_prefix(table.rows.texts("prompt"))
    columns = ("text",) if thoughts else ("said", "text")
    return table.rows.texts(*columns, without=prefix), prefix


def _largest(table: AuditTable, made: NearClusters, distinct: Positions) -> tuple[list[dict[str, Any]], int]:
    """The ten largest clusters for the report, and how many there are."""
    groups, sizes = np.unique(made.groups, return_counts=True)
    groups, sizes = groups[sizes > 1], sizes[sizes > 1]
    clusters, lines = [], table.lines
    # Stable: clusters of one size stay in the order of the file.
    for group in groups[np.argsort(-sizes, kind="stable")][:_NUM_CLUSTERS]:
        members = distinct[made.groups == group]
        clusters.append(
            {
                "size": len(members),
                "lines": lines[members[:_NUM_LINES]].tolist(),
                "excerpt": excerpt(table.rows.value(int(members[0]), "text")),
            }
        )
    return clusters, len(groups)


def _histogram(similarities: Any) -> dict[str, int]:
    # numpy's last bin is closed, so 1.0 gets its own bin with an upper edge above it.
    counts, _ = np.histogram(similarities, bins=[*_BINS, 1.01])
    names = [f"{low:g} to {high:g}" for low, high in pairwise(_BINS)] + ["1"]
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _num_chained(made: NearClusters) -> int:
    own = np.arange(len(made.kept))
    return int(((made.kept == own) & (made.groups != own)).sum())


def _repeat(num: int) -> str:
    return "repeats" if num == 1 else "repeat"
