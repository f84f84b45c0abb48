"""Rows of a dataset's version one by one, without reading what stands before them.

The index lies beside the file that `files.local_path` lays out, under its digest, and goes when that goes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller
from luthier.core.errors import WorkError
from luthier.features.datasets.records import DatasetVersion
from luthier.features.files.references import answer_about
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redacted_errors
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation

if TYPE_CHECKING:
    from luthier.ml.data.rows.row_index import RowIndex

SMALL_BYTES: Final = 4 << 20
"""Files of text up to this size are read by the process that was asked."""
RETRY_SECONDS: Final = 20.0
"""After so long a file is read again, where the machine could not the last time."""
_TEXT_SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab")
_LOOKED_AT: Final = 100
"""Rows from the start of a file that tell its columns."""


def open_rows(context: Context, caller: Caller, version: DatasetVersion) -> RowIndex:
    """The rows of a version by their place. The first time its file is proved and read; later that takes no time.

    Raises NotFoundError, DataError (a file that cannot be read), WorkError.
    """
    from luthier.ml.data.rows.row_index import build_index, is_quick, open_index

    file = files.get_file(context, caller.project_id, version.file_id)
    place = files.place_of(context, file)
    # Named after the content-addressed file, so an index can never belong to other rows.
    folder = place.with_name(f"rows-{place.name}")
    # The index first: `local_path` below proves the digest of the file, which reads all of it.
    if (found := open_index(place, folder)) is not None:
        return found
    path = files.local_path(context, file)
    with redacted_errors({str(path): file.filename, path.name: file.filename}):
        if is_quick(path):
            return build_index(path, folder)
        # In a child process: parsing a large file would hold the interpreter lock of the server for seconds.
        answer_about(context, caller.project_id, "index", version.file_id, {"folder": str(folder)})
        # The index may have been cleared between the answer of the child and now.
        return open_index(path, folder) or build_index(path, folder)


def index_state(context: Context, caller: Caller, version: DatasetVersion) -> CachedResult:
    """Whether the rows of a version can be read by their place; of a large file that begins with the first request.

    Small files are indexed at once. Raises NotFoundError, DataError (a small file that cannot be read), WorkError.
    """
    from luthier.ml.data.rows.row_index import open_index

    file = files.get_file(context, caller.project_id, version.file_id)
    place = files.place_of(context, file)
    folder = place.with_name(f"rows-{place.name}")
    if open_index(place, folder) is not None:
        return CachedResult("answered")
    if is_small(version.filename, version.num_bytes):
        open_rows(context, caller, version)
        return CachedResult("answered")
    subject = Subject(file.sha256, "index", {"suffix": files.suffix_of(file.filename)})
    found = cached_result(context, subject)
    # Also where it was found in the future: the clock was set back since.
    is_over = isinstance(found.error, WorkError) and not 0 <= time.time() - found.at <= RETRY_SECONDS
    if found.state == "running" or (found.state == "failed" and not is_over):
        return found

    def make() -> dict[str, Any]:
        return answer_about(context, caller.project_id, "index", version.file_id, {"folder": str(folder)})

    return start_computation(context, subject, make)


def is_small(filename: str, num_bytes: int) -> bool:
    """Whether a file is read by the process that was asked; larger and packed ones are by one of their own."""
    return num_bytes <= SMALL_BYTES and files.suffix_of(filename) in _TEXT_SUFFIXES


def columns_of(rows: RowIndex) -> list[str]:
    """The fields that the first rows have, in the order of their first appearance."""
    from luthier.core.dataset import Row

    names: dict[str, None] = {}
    for position in range(min(rows.num_rows, _LOOKED_AT)):
        row = rows.row(position)
        if isinstance(row, Row):
            names |= dict.fromkeys(row.fields)
    return list(names)
