"""Rows that say exactly what an earlier row says, after normalisation of case, white space and Unicode form."""

from __future__ import annotations

from typing import Final

import numpy as np

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, about_rows, one_of_each, rows
from luthier.ml.data.dedup.equal_values import first_positions

_MUCH: Final = 0.1


def check(request: AuditRequest) -> list[Finding]:
    """One finding about all copies but the first of each: a warning, an error where they are 10% of the rows or more.

    A few copies weigh some rows double; from a tenth on the file is another one than its number of rows says, and
    validation rows drawn from it are in training. details: num_groups, largest_group (rows, the kept one counted).
    """
    table = request.table
    first = first_positions(table.rows)
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
