"""What is asked of a split, and what keeps rows together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.errors import DataError
from luthier.core.ports import Progress
from luthier.ml.data.provenance import PROVENANCE, source_of
from luthier.ml.data.rows.shapes import GROUP

NO_GROUPS: Final = "none"
SOURCE: Final = "source"


class NearGroups(Protocol):
    """As `near_duplicates.near_duplicate_groups`: for each text the position of the first one of its cluster."""

    def __call__(self, texts: pl.Series, *, threshold: float, progress: Progress | None) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """How to split a file.

    Attributes:
        file: the rows.
        folder: where the parts go.
        validation: fraction of all rows, 0 to below 1.
        held_out: fraction of all rows, 0 to below 1.
        seed: of the order of the groups.
        group_by: the field whose value keeps rows together; "source" is the source document (`provenance.file`, or a
            field such as `source`); "none" groups by nothing; None groups by `provenance.file` where rows have it.
        stratify_by: the field of whose values each side has its share.
        near_threshold: exact Jaccard over word 3-shingles from which two rows stay on one side; None searches for none.
        mapping: as for training; its `group` is another way to say group_by.
        force: replace what an earlier split has left in the folder.
    """

    file: Path
    folder: Path
    validation: float = 0.1
    held_out: float = 0.1
    seed: int = 0
    group_by: str | None = None
    stratify_by: str | None = None
    near_threshold: float | None = 0.8
    mapping: Mapping[str, str] | None = None
    force: bool = False


def default_folder(file: Path) -> Path:
    """`rows.jsonl.gz` -> `rows-split`, beside it."""
    stem = file.name
    for suffix in reversed(file.suffixes[-2:] if file.suffix.lower() == ".gz" else file.suffixes[-1:]):
        stem = stem.removesuffix(suffix)
    return file.with_name(f"{stem}-split")


def group_of(fields: Mapping[str, Any], group_by: str | None) -> str | None:
    """The group of a row as `SplitRequest.group_by` asks for it; None where it has none."""
    if group_by == NO_GROUPS:
        return None
    if group_by is None:
        provenance = fields.get(PROVENANCE)
        return source_of({PROVENANCE: provenance}) if isinstance(provenance, dict) else None
    return source_of(fields) if group_by == SOURCE else source_of(fields, group_by)


def with_mapped_group(request: SplitRequest) -> SplitRequest:
    """The request grouped by what its mapping calls `group`.

    Raises:
        DataError: two groups are requested.
    """
    mapped = (request.mapping or {}).get(GROUP)
    if mapped is None or mapped == request.group_by:
        return request
    if request.group_by is not None:
        raise DataError(
            f"the group is asked for twice: group={mapped!r} in the mapping and group_by={request.group_by!r}",
            expected="one field that keeps rows together",
            do="remove one of the two",
        )
    return replace(request, group_by=mapped)
