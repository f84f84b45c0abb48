"""Rows of a dataset's version one by one, without reading what stands before them.

The index lies beside the file that `files.local_path` lays out, under its digest, and goes when that goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.dataset_version import DatasetVersion
from luthier.service import files
from luthier.service.context import Context
from luthier.service.file_references import answer_about
from luthier.service.path_redaction import redacted_errors

if TYPE_CHECKING:
    from luthier.data.row_index import RowIndex

_LOOKED_AT: Final = 100
"""Rows from the start of a file that tell its columns."""


def open_rows(context: Context, caller: Caller, version: DatasetVersion) -> RowIndex:
    """The rows of a version by their place. The first time its file is proved and read; later that takes no time.

    Raises NotFoundError, DataError (a file that cannot be read), WorkError.
    """
    from luthier.data.row_index import build_index, is_quick, open_index

    file = files.get_file(context, caller.project_id, version.file_id)
    place = files.place_of(context, file)
    folder = place.with_name(f"rows-{place.name}")
    if (found := open_index(place, folder)) is not None:
        return found
    path = files.local_path(context, file)
    with redacted_errors({str(path): file.filename, path.name: file.filename}):
        if is_quick(path):
            return build_index(path, folder)
        answer_about(context, caller.project_id, "index", version.file_id, {"folder": str(folder)})
        return open_index(path, folder) or build_index(path, folder)


def columns_of(rows: RowIndex) -> list[str]:
    """The fields that the first rows have, in the order of their first appearance."""
    from luthier.core.dataset import Row

    names: dict[str, None] = {}
    for position in range(min(rows.num_rows, _LOOKED_AT)):
        row = rows.row(position)
        if isinstance(row, Row):
            names |= dict.fromkeys(row.fields)
    return list(names)
