"""The rows of a quickstart: docstrings of this machine's own Python, in files and as datasets of the project.

The pages of its run and the form of a new one find the datasets.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from luthier.core.access import Caller
from luthier.core.ids import sha256_file
from luthier.core.ports import Progress
from luthier.features.datasets import service as datasets
from luthier.features.datasets.derived_versions import SIDES
from luthier.platform.home.context import Context

_NAME: Final = "Python documentation"
_NOTE: Final = "docstrings of this machine's own Python, by luthier quickstart"
_MARK: Final = "quickstart"
_BLOCK: Final = 1 << 20
_VALIDATION, _HELD_OUT, _SEED = 0.1, 0.15, 0


def write_python_rows(
    folder: Path, *, max_rows: int | None, max_characters: int | None, progress: Progress
) -> tuple[dict[str, int], dict[str, int]]:
    """Build rows from the standard library, split them by module, and write a file of each side.

    Args:
        folder: Where `train.jsonl` and so on are written; it exists.
        max_rows: Of all sides together; None for all.
        max_characters: Of a row; longer ones are left out. None for no limit.
        progress: Shows the building.

    Returns:
        The number of rows by side, and how many were left out by reason.
    """
    from luthier.ml.data.documents.python_docs import build_python_docs, split_python_docs
    from luthier.ml.data.rows.outputs import write_rows

    docs = build_python_docs(progress=progress, max_rows=max_rows, max_characters=max_characters)
    parts = split_python_docs(docs.rows, validation=_VALIDATION, held_out=_HELD_OUT, seed=_SEED)
    counts = {str(side): write_rows(rows, folder / f"{side}.jsonl") for side, rows in parts.items()}
    return counts, dict(docs.num_left_out)


def store_rows(context: Context, caller: Caller, folder: Path, sides: Iterable[str]) -> None:
    """Store the files of a quickstart as datasets, each content once.

    A dataset of an earlier quickstart gets a version. Where a quickstart is killed and continued, or started again with
    the same rows, nothing is stored twice.

    Args:
        context: The home.
        caller: Whose project the run is in.
        folder: With a file of rows for each side, `train.jsonl` and so on.
        sides: `train`, `validation` and `held_out`.

    Raises:
        StorageFullError: The disk is full.
    """
    for side in sides:
        path = folder / f"{side}.jsonl"
        if not context.run_entries.dataset_names(caller.project_id, [sha256_file(path)]):
            _store(context, caller, side, path)


def _store(context: Context, caller: Caller, side: str, path: Path) -> None:
    name = f"{_NAME}-{SIDES[side]}"
    known = context.datasets.find(caller.project_id, name)
    newest = None if known is None else datasets.get_version(context, caller, known.dataset_id)
    details = {_MARK: True, "side": side}
    with path.open("rb") as source:
        # Whatever the quota of the project: the run needs them.
        file = datasets.keep_rows(
            context, caller, iter(lambda: source.read(_BLOCK), b""), f"{name}.jsonl", is_result=True
        )
    if known is not None and newest is not None and _MARK in newest.details:
        datasets.add_version(
            context, caller, known.dataset_id, file, origin="upload", parent=None, note=_NOTE, details=details
        )
        return
    # The name may be that of somebody's own rows.
    own = datasets.free_name(context, caller.project_id, name)
    datasets.create_dataset(context, caller, own, file, note=_NOTE, details=details)
