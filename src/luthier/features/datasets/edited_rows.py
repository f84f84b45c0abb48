"""Whether a row that a person has edited can still be trained on like the rows around it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from luthier.core.dataset import Row, Shape
from luthier.core.errors import DataError, RequestError, RowProblem

if TYPE_CHECKING:
    from luthier.ml.data.rows.row_index import RowIndex
    from luthier.ml.data.rows.shapes import Decision

_LOOKED_AT: Final = 100


def check_edited(rows: RowIndex, row: Row | RowProblem, edited: Mapping[str, Any]) -> None:
    """Refuse an edited row that does not fit the shape of the file, or that leaves nothing to learn.

    The first hundred rows decide the shape. Rows of no known shape keep the fields and the types that they had.

    Args:
        rows: The index of the file.
        row: The row before the edit.
        edited: Its fields after the edit.

    Raises:
        RequestError: The row is unchanged, or does not fit.
    """
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.formats import example_of

    if isinstance(row, Row) and row.fields == edited:
        raise RequestError("the row is as it was", expected="an edit", do="accept the row, or change something in it")
    found = _decision_of(rows)
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


def shape_of(rows: RowIndex) -> Shape | None:
    """The shape that the first rows of a file have; None where they have none in common."""
    found = _decision_of(rows)
    return None if found is None else found.shape


def _decision_of(rows: RowIndex) -> Decision | None:
    from luthier.ml.data.rows.shapes import ShapeDetector

    detector = ShapeDetector(rows.name, {})
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
                do="keep its type: a training reads it as that",
            )
