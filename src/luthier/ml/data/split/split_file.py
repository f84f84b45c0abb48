"""Split a data file into train, validation and held-out files: whole groups, rows unchanged, no leak.

That no row leaks is proved from the files that were written, not from how they were made (`prove`). split.json holds
the options, the sides in figures, the proof, and what a person should know (`split_summary`).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import Row, Split
from luthier.core.errors import DataError, LeakageError
from luthier.core.ids import sha256_file
from luthier.core.json_limits import json_utf8
from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.audit.table import AuditTable, build_table
from luthier.ml.data.dedup.near_duplicates import near_duplicate_groups
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.outputs import check_free, check_outputs, publish, working_folder
from luthier.ml.data.rows.rows import read_records
from luthier.ml.data.split.split import SIDES, check_fractions, majority, sides_of, united
from luthier.ml.data.split.split_request import (
    NearGroups,
    SplitColumns,
    SplitRequest,
    check_readable,
    group_of,
    read_columns,
    with_mapped_group,
)


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


def split_summary(
    request: SplitRequest,
    table: AuditTable,
    columns: SplitColumns,
    side: Mapping[str, Split],
    names: list[str],
    written: Mapping[Split, Path],
    proof: SplitProof,
) -> dict[str, Any]:
    """The document.

    Args:
        request: what was split, and how.
        table: the rows as they were read.
        columns: groups and strata.
        side: of each group by its name.
        names: the group of each row, in the order of the file.
        written: the file of each side.
        proof: of the written files.
    """
    sizes = Counter(names)
    rows, groups = Counter(side[name] for name in names), Counter(side.values())
    asked: dict[Split, float] = {"validation": request.validation, "held_out": request.held_out}
    # Rounded: 1 - 0.1 - 0.2 is 0.7000000000000001 in binary.
    asked["train"] = round(1 - sum(asked.values()), 12)
    sides = {
        name: {
            "file": path.name,
            "sha256": sha256_file(path),
            "num_rows": rows[name],
            "num_groups": groups[name],
            "fraction_asked": asked[name],
            "fraction": rows[name] / len(names),
        }
        for name, path in written.items()
    }
    table_of: dict[str, Counter[str]] = defaultdict(Counter)
    for name, stratum in zip(names, columns.strata, strict=True):
        table_of[stratum][side[name]] += 1
    return {
        "file": table.file,
        "sha256": table.sha256,
        "num_rows": len(names),
        "num_groups": len(sizes),
        "largest_group_rows": max(sizes.values()),
        "seed": request.seed,
        "grouped_by": columns.grouped_by,
        "grouping": columns.reason,
        "stratified_by": request.stratify_by,
        "near_threshold": request.near_threshold,
        "mapping": dict(request.mapping or {}),
        "shape": table.shape,
        "shape_reason": table.shape_reason,
        "sides": sides,
        "strata": {
            stratum: {name: table_of[stratum][name] for name in written} for stratum in sorted(table_of)
        } if request.stratify_by is not None else {},
        "proof": proof.as_json(),
        "warnings": _warnings(request, table, sides, max(sizes.values())),
    }  # fmt: skip


def _warnings(
    request: SplitRequest, table: AuditTable, sides: Mapping[Split, Mapping[str, Any]], largest: int
) -> list[str]:
    said, num_rows = [], table.num_rows
    if largest > sides["train"]["fraction_asked"] * num_rows and largest > 1:
        said.append(
            f"one group of {largest:,} rows ({largest / num_rows:.1%}) is larger than the whole share of train "
            f"({sides['train']['fraction_asked']:.0%}): these rows are duplicates, near-duplicates or of one source"
        )
    for name, part in sides.items():
        if name != "train" and abs(part["fraction"] - part["fraction_asked"]) * num_rows > max(
            1, 0.1 * part["fraction_asked"] * num_rows
        ):
            said.append(f"{name} has {part['fraction']:.1%} of the rows where {part['fraction_asked']:.1%} was asked: "
                        "groups are kept whole")  # fmt: skip
    if table.shape is None:
        said.append(
            f"the rows fit no shape ({table.shape_reason}); whether they are the same is decided by all their texts"
        )
    elif table.problems:
        num = len({problem.line for problem in table.problems})
        said.append(f"{num:,} rows do not fit the shape {table.shape}; `luthier data audit` names them")
    if request.near_threshold is None:
        said.append("near-duplicates were not searched for, so they may stand on both sides")
    return said


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
