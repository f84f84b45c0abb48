"""Rows of a dataset's version one by one, and answers about it that are kept as long as its file is.

Both lie beside the file that `files.local_path` lays out, under its digest, and go when that goes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller
from luthier.core.dataset_version import DatasetVersion
from luthier.core.digest import sha256_document
from luthier.service import files
from luthier.service.context import Context
from luthier.service.questions import answer_to

if TYPE_CHECKING:
    from luthier.data.row_index import RowIndex

_LOOKED_AT: Final = 100
"""Rows from the start of a file that tell its columns and its shape."""


def open_rows(context: Context, caller: Caller, version: DatasetVersion) -> RowIndex:
    """The rows of a version by their place. The first time its file is proved and read; later that takes no time.

    Raises NotFoundError, DataError (a file that cannot be read), WorkError.
    """
    from luthier.data.row_index import build_index, is_quick, open_index

    file = files.get_file(context, caller.project_id, version.file_id)
    place = files.place_of(context, file)
    folder = place.with_name(f"rows{place.suffix}")
    if (found := open_index(place, folder)) is not None:
        return found
    path = files.local_path(context, file)
    if is_quick(path):
        return build_index(path, folder)
    answer_to(context, "rows", {"file": str(path), "folder": str(folder)})
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


def kept_answer(context: Context, caller: Caller, version: DatasetVersion, name: str) -> dict[str, Any] | None:
    """The answer about a version that was kept under a name; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(_answer_path(context, caller, version, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def keep_answer(
    context: Context, caller: Caller, version: DatasetVersion, name: str, ask: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """The kept answer, else what `ask` says of the version's file, kept. Raises what `ask` and `local_path` raise."""
    if (known := kept_answer(context, caller, version, name)) is not None:
        return known
    path = files.local_path(context, files.get_file(context, caller.project_id, version.file_id))
    found = ask(path)
    target = _answer_path(context, caller, version, name)
    made = target.with_name(f".{target.name}.{os.getpid()}")
    made.write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
    made.replace(target)
    return found


def answer_name(kind: str, options: dict[str, Any]) -> str:
    """A name for an answer that depends on options."""
    return f"{kind}-{sha256_document(options)[:24]}"


def _answer_path(context: Context, caller: Caller, version: DatasetVersion, name: str) -> Path:
    file = files.get_file(context, caller.project_id, version.file_id)
    return files.place_of(context, file).with_name(f"{name}.json")
