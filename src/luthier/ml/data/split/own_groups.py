"""What keeps rows of one document together where a share of a file is taken out and nobody has named a field for it.

Passages and questions that name their document in their provenance share its sentences, so that rows of one document on
both sides give answers away. Whole documents stay together, or whole passages where there are too few documents for the
shares (`provenance.DOCUMENT`, `provenance.PASSAGE`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.source import open_source
from luthier.ml.data.provenance import DOCUMENT, OWN_GROUPS, PASSAGE, PROVENANCE, field_at
from luthier.ml.data.rows.rows import read_rows
from luthier.ml.data.rows.shapes import GROUP
from luthier.ml.data.split.split import SIDES, U64, hashes_of, joined, row_sides
from luthier.ml.data.text.normalise import normalised_digest

_NUM_LOOKED_AT: Final = 200
_MOST_OFF: Final = 0.5
"""A side may be off its share by this fraction of it."""
_NOUNS: Final = {DOCUMENT: "document", PASSAGE: "passage"}


def own_group_field(rows: Iterable[Row | RowProblem], *, validation: float, held_out: float, seed: int) -> str | None:
    """The field by which rows are kept together; None where they name no document, or too few for the shares.

    Args:
        rows: of the file; only the first 200 are read where none of these has a provenance.
        validation: fraction of all rows that is taken out.
        held_out: likewise.
        seed: of the split.
    """
    rows = iter(rows)
    first = list(islice(rows, _NUM_LOOKED_AT))
    if not any(isinstance(row, Row) and isinstance(row.fields.get(PROVENANCE), Mapping) for row in first):
        return None
    contents: list[str] = []
    values: dict[str, list[str | None]] = {name: [] for name in OWN_GROUPS}
    for fields in _fields_of(chain(first, rows)):
        contents.append(_content_of(fields))
        for name, found in values.items():
            found.append(field_at(fields, name))
    said = hashes_of(contents, seed)
    shares = {"validation": validation, "held_out": held_out}
    for name, found in values.items():
        named = [value for value in found if value is not None]
        if len(set(named)) == len(named):
            continue  # nothing that this would keep together
        groups = hashes_of((own if value is None else value for own, value in zip(contents, found, strict=True)), seed)
        if _can_be_shared_out(joined(groups, said), shares):
            return name
    return None


def own_group_of_file(path: Path, mapping: Mapping[str, str] | None, *, held_out: float, seed: int) -> str | None:
    """As `own_group_field` for the rows of a file; None where the mapping names a group itself.

    Args:
        path: the file.
        mapping: field of the shape -> column.
        held_out: fraction of all rows that is taken out.
        seed: of the split.
    """
    if GROUP in (mapping or {}):
        return None
    return own_group_field(read_rows(open_source(path)), validation=0.0, held_out=held_out, seed=seed)


def _fields_of(rows: Iterable[Row | RowProblem]) -> Iterator[Mapping[str, Any]]:
    return (row.fields for row in rows if isinstance(row, Row))


def _content_of(fields: Mapping[str, Any]) -> str:
    """A digest of what a row says, nearly as `normalise.content_key` makes it of a mapped one."""
    others = {name: value for name, value in fields.items() if name != PROVENANCE}
    return normalised_digest(json.dumps(others, sort_keys=True, default=str))


def _can_be_shared_out(hashes: U64, shares: Mapping[str, float]) -> bool:
    """Whether there are enough groups for sides of about the sizes that are asked for."""
    try:
        codes = row_sides(hashes, validation=shares["validation"], held_out=shares["held_out"])
    except DataError:
        return False
    nums = {side: int(np.count_nonzero(codes == code)) for code, side in enumerate(SIDES)}
    wanted = {side: share * len(codes) for side, share in shares.items()}
    return all(abs(nums[side] - num) <= max(1.0, _MOST_OFF * num) for side, num in wanted.items())  # type: ignore[index]


def group_note(field: str | None) -> str:
    """How rows are kept together by `own_group_field`, as text behind a reason; empty for any other field."""
    noun = _NOUNS.get(field or "")
    return "" if noun is None else f"; rows of one {noun} ({field}) stay on one side"
