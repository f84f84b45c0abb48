"""Splits of data files into train, validation and held-out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import RequestError
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.split.split_file import FileSplit


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How to split a file.

    Attributes:
        folder: Where the sides are written; None for a folder beside the file.
        validation: The fraction of the validation side, 0 to 1.
        held_out: The fraction of the held-out side, 0 to 1.
        seed: Another seed gives another split.
        group_by: The field whose equal values stay on one side.
        stratify_by: The field whose values each side has its share of.
        near_threshold: Jaccard similarity (0.5 to 1) from which rows stay together; None does not search.
        mapping: Column map, as for training.
        force: Replace an earlier split.
    """

    folder: Path | None = None
    validation: float = 0.1
    held_out: float = 0.1
    seed: int = 0
    group_by: str | None = None
    stratify_by: str | None = None
    near_threshold: float | None = 0.8
    mapping: Mapping[str, str] | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class WrittenSplit:
    """A split that was written.

    Attributes:
        folder: Where its sides are.
        document: The content of split.json.
    """

    folder: Path
    document: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data split --json`: split.json and where it lies."""
        return {"folder": str(self.folder), **self.document}

    def recipe_data(self) -> dict[str, str]:
        """The `data` of a recipe whose rows are the sides of this split: those that the proof covers."""
        return {side: str(self.folder / part["file"]) for side, part in self.document["sides"].items()}


def split(context: Context, file: Path, options: SplitOptions | None = None) -> WrittenSplit:
    """Split a file; the same file and options give the same bytes.

    Raises:
        NotFoundError: No such file.
        DataError: Rows, fields or fractions that do not allow it.
        ConflictError: An earlier split is there.
        RequestError: Options that cannot be.
        LeakageError: The proof failed.
    """
    from luthier.ml.data.split.split_file import split_file
    from luthier.ml.data.split.split_request import SplitRequest, default_folder

    options = options or SplitOptions()
    if options.near_threshold is not None and not 0.5 <= options.near_threshold <= 1:
        raise RequestError(
            f"--near-threshold {options.near_threshold}",
            expected="a Jaccard similarity from 0.5 to 1",
            do="take the default of 0.8, or leave the search out with --no-near-duplicates",
        )
    request = SplitRequest(
        file=file,
        folder=options.folder if options.folder is not None else default_folder(file),
        validation=options.validation,
        held_out=options.held_out,
        seed=options.seed,
        group_by=options.group_by,
        stratify_by=options.stratify_by,
        near_threshold=options.near_threshold,
        mapping=options.mapping,
        force=options.force,
    )
    made: FileSplit = split_file(request, progress=context.progress)
    return WrittenSplit(made.folder, made.document)
