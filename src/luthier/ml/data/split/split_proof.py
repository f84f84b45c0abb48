"""The proof that a split has no leak: computed from the files that were written, not from how they were made."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.dataset import Row, Split
from luthier.core.errors import DataError, LeakageError
from luthier.core.ports import Progress
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.records import read_records
from luthier.ml.data.split.split_request import NearGroups, SplitRequest, group_of


@dataclass(frozen=True, slots=True)
class SplitProof:
    """What is on more than one side.

    `exact`, `near_duplicate` and `same_group` are 0 in every split that is written.

    Attributes:
        num_rows: rows read back.
        exact: texts that are the same after normalisation.
        near_duplicate: clusters at the threshold; None where they were not searched for.
        same_group: groups; None where rows have none.
        same_prompt: rows of validation and held-out whose prompt also is in train, with another answer: reported, since
            whether that is a leak depends on the task.
    """

    num_rows: int
    exact: int
    near_duplicate: int | None
    same_group: int | None
    same_prompt: int

    def as_json(self) -> dict[str, Any]:
        """The figures, and how they were found."""
        method = (
            "read back from the written files: every line is a line of the input and stands in one file; digests of "
            "normalised contents, prompts and groups are compared across files, and near-duplicates are searched for "
            "among all rows together with the search that made the groups, whose recall bounds what it can see"
        )
        return {**asdict(self), "method": method}


def prove(
    request: SplitRequest,
    written: Mapping[Split, Path],
    grouped_by: str | None,
    near_groups: NearGroups,
    folder: Path,
    progress: Progress,
) -> SplitProof:
    """Read the written files together and count what they share.

    Args:
        request: what was split, and how.
        written: the file of each side.
        grouped_by: the field that kept rows together; None for none.
        near_groups: the search for near-duplicates.
        folder: for a working file.
        progress: shows the search.

    Raises:
        LeakageError: they share a text, a near-duplicate or a group.
        DataError: a row of the input is missing or changed.
    """
    together = folder / "proof.jsonl"
    sides: list[Split] = []
    with together.open("wb") as file:
        for side, path in written.items():
            with path.open("rb") as part:
                for line in part:
                    file.write(line)
                    sides.append(side)
    _check_same_lines(request.file, together)
    table = build_table(together, mapping=request.mapping, progress=progress)
    frame = table.frame
    same_group = near = None
    if grouped_by is not None:
        same_group = _num_shared(_groups(request, together), sides)
    if request.near_threshold is not None:
        clusters = near_groups(frame["text"], threshold=request.near_threshold, progress=progress)
        near = _num_shared(np.asarray(clusters).tolist(), sides)
    prompts = frame["prompt_key"].to_list()
    trained = {prompt for prompt, side in zip(prompts, sides, strict=True) if side == "train"} - {None}
    proof = SplitProof(
        num_rows=len(sides),
        exact=_num_shared(frame["content_key"].to_list(), sides),
        near_duplicate=near,
        same_group=same_group,
        same_prompt=sum(p in trained for p, side in zip(prompts, sides, strict=True) if side != "train"),
    )
    if proof.exact or proof.near_duplicate or proof.same_group:
        raise LeakageError(
            f"the split leaks: {proof.exact} texts, {proof.near_duplicate} clusters of near-duplicates and "
            f"{proof.same_group} groups stand on two sides",
            expected="0 of each",
            do="nothing was written; this is a fault of Luthier: please report it with the options you gave",
        )
    return proof


def _groups(request: SplitRequest, path: Path) -> list[str | None]:
    rows = (record.item for record in read_records(open_source(path)))
    return [group_of(row.fields, request.group_by) for row in rows if isinstance(row, Row)]


def _num_shared(keys: Iterable[Hashable | None], sides: list[Split]) -> int:
    """How many keys stand on more than one side."""
    found: dict[Hashable, set[Split]] = defaultdict(set)
    for key, side in zip(keys, sides, strict=True):
        if key is not None:
            found[key].add(side)
    return sum(len(where) > 1 for where in found.values())


def _check_same_lines(original: Path, together: Path) -> None:
    """Every row of the input is in the output once, unchanged: equal counts, and equal sums of line digests."""
    one, other = _sum_of_digests(original), _sum_of_digests(together)
    if one != other:
        raise DataError(
            f"{other[0]:,} rows were written of {one[0]:,}, or some were changed",
            expected="every row of the input in one of the files, unchanged",
            do="nothing was written; check the disk, then start again",
        )


def _sum_of_digests(path: Path) -> tuple[int, int]:
    num, total = 0, 0
    for record in read_records(open_source(path)):
        num += 1
        total += int.from_bytes(hashlib.sha256(record.raw or b"").digest(), "big")
    # A sum of digests does not depend on order, and unlike XOR a line that occurs twice does not cancel out.
    return num, total % 2**256
