"""Rows of a table that was built before, for the table of a copy of its file in which few rows have changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.ml.data.files.source import Source
from luthier.ml.data.rows.read_json import lines_of_jsonl

if TYPE_CHECKING:
    from luthier.ml.data.audit.table import AuditTable, RowForm

Frames = tuple[pl.DataFrame, list[RowProblem], int]
"""Rows in order, what is wrong with their records, and how many records that are."""

_MOST_CHANGED: Final = 0.25


@dataclass(frozen=True, slots=True)
class EarlierRows:
    """The table of a JSONL file of which there is a copy, with some lines that are others and some that are blank.

    Attributes:
        table: of the file.
        changed: lines of the copy whose rows are not those of the table.
    """

    table: AuditTable
    changed: Collection[int]

    def fit(self, form: RowForm, num_rows: int, *, has_tokens: bool) -> bool:
        """Whether the rows that have not changed can be taken from the table.

        Args:
            form: how the rows of the copy are mapped.
            num_rows: of the copy. Where many of them have changed, workers are faster at mapping all again.
            has_tokens: whether tokens are counted.
        """
        table = self.table
        is_alike = (form.shape, form.mapping, form.group_by) == (table.shape, table.mapping, table.group_by)
        return is_alike and has_tokens == table.has_tokens and len(self.changed) <= _MOST_CHANGED * num_rows

    def frames(self, copy: Source, map_rows: Callable[[list[Row | RowProblem]], Iterator[Frames]]) -> Iterator[Frames]:
        """The rows of the copy. Of its lines those alone are parsed that have changed.

        Args:
            copy: the file.
            map_rows: makes frames of rows.
        """
        problems = {problem.line: replace(problem, file=copy.name) for problem in self.table.problems}
        lines = lines_of_jsonl(copy)
        line = next(lines, None)
        # Behind the last part an empty one, for lines that follow the last row of the table.
        for part in chain((part for _, part in self.table.rows.parts()), [pl.DataFrame(schema=self.table.rows.schema)]):
            last = int(part["line"][-1]) if part.height else math.inf
            same: list[int] = []
            others: list[Row | RowProblem] = []
            while line is not None and line.number <= last:
                if line.number in self.changed:
                    others.append(line.row(copy.name))
                else:
                    same.append(line.number)
                line = next(lines, None)
            kept = part.filter(pl.Series(np.isin(part["line"].to_numpy(), same)))
            mapped = list(map_rows(others))
            wrong = [problems[number] for number in same if number in problems]
            wrong += [problem for _, new, _ in mapped for problem in new]
            frame = pl.concat([kept, *(frame for frame, _, _ in mapped)]).sort("line")
            # Lines that are neither changed nor in the table are not counted, so that the number of rows is too small.
            yield frame, sorted(wrong, key=lambda problem: problem.line), kept.height + sum(num for _, _, num in mapped)
