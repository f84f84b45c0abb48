"""Differences between two versions of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import RequestError
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.diff.compare import DatasetDiff


def compare(
    context: Context,
    old: Path,
    new: Path,
    *,
    key: str | None = None,
    mapping: Mapping[str, str] | None = None,
    num_examples: int = 5,
) -> DatasetDiff:
    """What changed from one data file, or folder with a split, to another.

    Arguments and errors: as `data.diff.compare.diff`; RequestError for fewer examples than none.
    """
    if num_examples < 0:
        raise RequestError(f"num_examples={num_examples}", expected="0 or more", do="ask for no or some examples")
    from luthier.ml.data.diff.compare import diff

    return diff(old, new, key=key, mapping=mapping, num_examples=num_examples, progress=context.progress)
