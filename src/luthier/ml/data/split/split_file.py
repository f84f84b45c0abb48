"""Split a data file into train, validation and held-out files: whole groups, rows unchanged, no leak."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import Split
from luthier.core.digest import sha256_file
from luthier.core.errors import DataError
from luthier.core.json_limits import json_utf8
from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.audit.table import AuditTable, build_table
from luthier.ml.data.dedup.near_duplicates import near_duplicate_groups
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.outputs import check_free, check_outputs, publish, working_folder
from luthier.ml.data.rows.records import read_records
from luthier.ml.data.split.split_columns import SplitColumns, check_readable, read_columns
from luthier.ml.data.split.split_groups import SIDES, check_fractions, majority, sides_of, united
from luthier.ml.data.split.split_proof import SplitProof, prove
from luthier.ml.data.split.split_request import NearGroups, SplitRequest, with_mapped_group
from luthier.ml.data.split.split_summary import split_summary

SUMMARY: Final = "split.json"


@dataclass(frozen=True, slots=True)
class FileSplit:
    """A split that was written and proved.

    Attributes:
        folder: where the files are.
        document: the contents of split.json.
        proof: counts of what is on more than one side.
    """

    folder: Path
    document: dict[str, Any]
    proof: SplitProof


def split_file(
    request: SplitRequest, *, progress: Progress | None = None, near_groups: NearGroups = near_duplicate_groups
) -> FileSplit:
    """Write train.jsonl, validation.jsonl, held_out.jsonl (a fraction of 0 writes none) and split.json into a folder.

    Rows that share a group, say the same after normalisation, or are near-duplicates of each other stand on one side.
    The line of a JSONL row passes through byte for byte. What is written is read again and proved to be without leak
    before it is moved into place, split.json last. The same rows, options and seed give the same sides, whatever the
    order of the rows.

    Raises:
        NotFoundError: there is no such file.
        DataError: rows cannot be read, fractions or fields are wrong, or there are too few groups.
        ConflictError: the folder holds an earlier split, and `force` is not set.
        RequestError: an output is the input.
        LeakageError: the proof failed: nothing was written.
    """
    request = with_mapped_group(request)
    check_fractions(validation=request.validation, held_out=request.held_out)
    if request.validation + request.held_out == 0:
        raise DataError(
            "validation = 0 and held_out = 0 leave nothing to split off",
            expected="at least one fraction above 0",
            do="give --held-out, --validation or both",
        )
    finals: dict[Split, Path] = {side: request.folder / f"{side}.jsonl" for side in SIDES}
    summary = request.folder / SUMMARY
    progress = progress or SilentProgress()
    source = open_source(request.file)
    check_outputs([*finals.values(), summary], [request.file])
    check_free([summary], force=request.force)

    table = build_table(request.file, mapping=request.mapping, progress=progress)
    check_readable(table)
    columns = read_columns(request, table)
    near = None
    if request.near_threshold is not None:
        # Near-duplicates are joined with groups into components before the split: one on each side would be a leak.
        near = near_groups(table.frame["text"], threshold=request.near_threshold, progress=progress)
    names = _component_names(table, columns.groups, near)
    sizes = Counter(names)
    strata = _strata(names, columns.strata) if request.stratify_by is not None else None
    side = _sides(request, sizes, strata, columns)

    with working_folder(summary) as work:
        written = _write(source.path, [side[name] for name in names], work, progress)
        # The file was read three times: sides of an earlier version would be given to other rows.
        if sha256_file(request.file) != table.sha256:
            raise DataError(
                f"{source.name} was changed while it was read",
                expected="a file that stays as it is",
                do="wait until whatever writes the file is done, then start again",
            )
        # Before anything is moved into place: a leak leaves the folder as it was.
        proof = prove(request, written, columns.grouped_by, near_groups, work, progress)
        document = split_summary(request, table, columns, side, names, written, proof)
        stale = [path for name, path in finals.items() if name not in written and path.exists()]
        check_free(stale, force=request.force)
        document["removed"] = [path.name for path in stale]
        made = work / SUMMARY
        made.write_bytes(json_utf8(document, indent=2) + b"\n")
        publish({**{written[name]: finals[name] for name in written}, made: summary}, force=request.force)
        for path in stale:  # of an earlier split, so it would leak into this one
            path.unlink()
    return FileSplit(request.folder, document, proof)


def _component_names(table: AuditTable, groups: list[str | None], near: npt.NDArray[np.int64] | None) -> list[str]:
    """For each row the name of what must stay together: the least group or content key in it, so no matter of order."""
    contents = table.frame["content_key"].to_list()
    clusters = near.tolist() if near is not None else [None] * len(contents)
    roots = united(zip(groups, contents, clusters, strict=True)).tolist()
    least: dict[int, str] = {}
    for root, group, content in zip(roots, groups, contents, strict=True):
        name = content if group is None else group
        least[root] = min(least.get(root, name), name)
    return [least[root] for root in roots]


def _strata(names: list[str], values: list[str]) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, value in zip(names, values, strict=True):
        found[name].append(value)
    return {name: majority(inner) for name, inner in found.items()}


def _sides(
    request: SplitRequest, sizes: Mapping[str, int], strata: Mapping[str, str] | None, columns: SplitColumns
) -> dict[str, Split]:
    try:
        return sides_of(
            sizes,
            validation=request.validation,
            held_out=request.held_out,
            seed=request.seed,
            strata=strata,
            noun="groups" if columns.grouped_by else "different texts",
        )
    except DataError as error:
        do = error.do
        if request.near_threshold is not None:
            do += f"; near-duplicates (Jaccard {request.near_threshold} and up) were kept together"
        if columns.grouped_by:
            do += f"; {columns.reason}"
        raise DataError(error.came, expected=error.expected, do=do) from error


def _write(path: Path, sides: list[Split], folder: Path, progress: Progress) -> dict[Split, Path]:
    """The rows as lines, each in the file of its side."""
    written = {side: folder / f"{side}.jsonl" for side in SIDES if side in set(sides)}
    with ExitStack() as stack, progress.task("write rows", len(sides), "row") as task:
        files: dict[Split, IO[bytes]] = {side: stack.enter_context(file.open("wb")) for side, file in written.items()}
        for side, record in zip(sides, read_records(open_source(path)), strict=True):
            files[side].write((record.raw or b"") + b"\n")
            task.advance()
    return written
