"""The rows of a version after annotation decisions: edited rows are checked, the result is written in parts.

An edited row is accepted only if it can be trained on like the rows around it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RequestError, RowProblem
from luthier.core.ports import ProgressTask
from luthier.ml.data.rows.outputs import json_line

if TYPE_CHECKING:
    from luthier.features.datasets.annotations import Queue
    from luthier.ml.data.rows.row_index import RowIndex
    from luthier.ml.data.rows.shapes import Decision


@dataclass
class Counts:
    """What became of the rows while they were written.

    Attributes:
        decided: Rows by decision.
        num_undecided: Rows without a decision, which pass through.
        num_unreadable: Records that are not rows, which are left out.
        num_written: Rows that were written.
        warned: Lines of the result that were marked by a check before and were not edited.
    """

    decided: Counter[str] = field(default_factory=Counter)
    num_undecided: int = 0
    num_unreadable: int = 0
    num_written: int = 0
    warned: list[int] = field(default_factory=list)

    def as_details(self, queue: Queue) -> dict[str, Any]:
        """For the version that was made."""
        return {
            **({"warned": self.warned} if self.warned else {}),
            "from_version": queue.version.number,
            "accepted": self.decided["accept"],
            "rejected": self.decided["reject"],
            "edited": self.decided["edit"],
            "undecided": self.num_undecided,
            "unreadable": self.num_unreadable,
            "people": dict(queue.by_author[:50]),
        }


def decided_rows(queue: Queue, counts: Counts, task: ProgressTask) -> Iterator[bytes]:
    """JSONL in pieces; counts are right when the last one was taken.

    A row that was not edited passes through unchanged. Of a file that is no JSONL what could not be read has no
    bytes to pass through, and is left out. The task counts the rows that were read.
    """
    for line, pieces in queue.rows.pieces():
        task.advance()
        decision = queue.decisions.get(line)
        if decision is not None:
            counts.decided[decision.decision] += 1
        else:
            counts.num_undecided += 1
        if decision is not None and decision.decision == "reject":
            continue
        if decision is not None and decision.edited is not None:
            counts.num_written += 1
            yield json_line(decision.edited) + b"\n"
            continue
        # Rows come in pieces, so a row of many megabytes never is in memory as a whole.
        first = next(pieces)
        # In a copied index a row that cannot be read is stored as a JSON string with the reason; rows are objects.
        if queue.rows.is_copy and first.startswith(b'"'):
            counts.num_unreadable += 1
            continue
        counts.num_written += 1
        if line in queue.warned:
            counts.warned.append(counts.num_written)
        yield first
        yield from pieces


_LOOKED_AT: Final = 100


def check_edited(
    rows: RowIndex, row: Row | RowProblem, edited: Mapping[str, Any], columns: Mapping[str, str] | None = None
) -> None:
    """Refuse an edited row that does not fit the shape of the file, or that leaves nothing to learn.

    The first hundred rows decide the shape. Rows of no known shape keep the fields and the types that they had.

    Args:
        rows: The index of the file.
        row: The row before the edit.
        edited: Its fields after the edit.
        columns: Which column is which field, as chosen for the version.

    Raises:
        RequestError: The row is unchanged, or does not fit.
    """
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.formats import example_of

    if isinstance(row, Row) and row.fields == edited:
        raise RequestError("the row is unchanged", expected="an edit", do="accept the row, or change something in it")
    found = detected_shape(rows, columns)
    if found is None:
        _check_same_fields(row, edited)
        return
    shape = found.shape
    try:
        example_of(Row(rows.name, row.line, dict(edited)), shape, found.mapping, None)
    except BadFieldError as error:
        raise RequestError(
            f"{error.field} {error.reason}",
            expected=f"a row of shape {shape.replace('_', ' and ')}, as the others are, with something to learn",
            do="correct it, or reject the row",
        ) from error


def detected_shape(rows: RowIndex, columns: Mapping[str, str] | None = None) -> Decision | None:
    """The shape of a file with its columns, by its first hundred rows; None where they have none in common."""
    from luthier.ml.data.rows.shapes import ShapeDetector

    detector = ShapeDetector(rows.name, dict(columns or {}))
    # A bound on the time of one edit, which somebody waits for.
    for position in range(min(rows.num_rows, _LOOKED_AT)):
        row = rows.row(position)
        if isinstance(row, Row):
            detector.add(row)
    try:
        return detector.settle(group=None)
    except DataError:
        return None


def _check_same_fields(row: Row | RowProblem, edited: Mapping[str, Any]) -> None:
    if not isinstance(row, Row):
        if not edited:
            raise RequestError("a row without fields", expected="a row like the others", do="fill it in, or reject it")
        return
    for name in (*row.fields, *edited):
        if name not in edited or name not in row.fields:
            near = difflib.get_close_matches(name, list(row.fields), n=1, cutoff=0.7)
            raise RequestError(
                f"the field {name!r} is {'missing' if name in row.fields else 'new'}",
                expected=f"the fields that the row has: {', '.join(row.fields)}",
                do=f"did you mean {near[0]!r}?" if near and near[0] != name else "keep the fields as they are",
            )
        # A null may become any type. Type identity, not isinstance: True is an int to isinstance.
        if row.fields[name] is not None and type(row.fields[name]) is not type(edited[name]):
            raise RequestError(
                f"the field {name!r} holds another type of value than before",
                expected=f"{type(row.fields[name]).__name__}, as it was",
                do="keep its type: training relies on it",
            )
