"""Split a data file into train, validation and held-out files: whole groups, rows unchanged, no leak.

That no row leaks is proved from the files that were written, not from how they were made (`prove`). split.json holds
the options, the sides in figures, the proof, and what a person should know (`split_summary`).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.dataset import Row, Split
from luthier.core.errors import DataError, LeakageError
from luthier.core.ids import sha256_file
from luthier.core.json_limits import json_utf8
from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.audit.table import AuditTable, build_table
from luthier.ml.data.dedup.equal_values import Digests, column_digests, first_positions
from luthier.ml.data.dedup.near_duplicates import near_duplicate_groups
from luthier.ml.data.files.row_frames import RowFrames, TextColumn
from luthier.ml.data.files.row_workers import IN_PROCESS, RowWorkers
from luthier.ml.data.files.source import changed_while_read, open_source
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.rows.outputs import check_free, check_outputs, publish, working_folder
from luthier.ml.data.rows.rows import read_raw_records, read_records
from luthier.ml.data.split.continued import Continuations
from luthier.ml.data.split.split import SIDES, U64, Codes, check_fractions, group_sides, hashes_of, majority, united
from luthier.ml.data.split.split_request import (
    NearGroups,
    SplitColumns,
    SplitRequest,
    StringColumn,
    check_readable,
    group_of,
    mapped_row,
    read_columns,
    with_mapped_group,
)
from luthier.ml.data.tokenise.shared_prefix import common_prefix

_FEWEST_WORDS: Final = 3


@dataclass(frozen=True, slots=True)
class SplitProof:
    """What is on more than one side.

    `exact`, `near_duplicate`, `same_group` and `continued` are 0 in every split that is written.

    Attributes:
        num_rows: rows read back.
        exact: texts that are the same after normalisation.
        near_duplicate: clusters at the threshold; None where they were not searched for.
        same_group: groups; None where rows have none.
        same_prompt: rows of validation and held-out whose prompt also is in train, with another answer: reported, since
            whether that is a leak depends on the task.
        continued: conversations that a row of another side continues.
    """

    num_rows: int
    exact: int
    near_duplicate: int | None
    same_group: int | None
    same_prompt: int
    continued: int = 0

    def as_json(self) -> dict[str, Any]:
        """The figures, and how they were found."""
        method = (
            "read back from the written files: every line is a line of the input and is in one file; digests of "
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
    spill: Spill | None = None,
    workers: RowWorkers = IN_PROCESS,
) -> SplitProof:
    """Read the written files together and count what they share.

    Args:
        request: what was split, and how.
        written: the file of each side.
        grouped_by: the field that kept rows together; None for none.
        near_groups: the search for near-duplicates.
        folder: for a working file.
        progress: shows the search.
        spill: the budget of memory.
        workers: who looks at the rows.

    Raises:
        LeakageError: they share a text, a near-duplicate or a group.
        DataError: a row of the input is missing or changed.
    """
    together = folder / "proof.jsonl"
    side_of_line = array("b")
    with together.open("wb") as file:
        for side, path in written.items():
            with path.open("rb") as part:
                for line in part:
                    file.write(line)
                    side_of_line.append(SIDES.index(side))
    _check_same_lines(request.file, together)
    sides: Codes = np.asarray(side_of_line, dtype=np.int8)
    table = build_table(together, mapping=request.mapping, progress=progress, spill=spill, workers=workers)
    same_group = near = None
    if grouped_by is not None:
        groups = RowFrames.of(pl.DataFrame({"group": _groups(request, together)}))
        same_group = _num_shared(column_digests(groups, "group"), sides)
    if request.near_threshold is not None:
        clusters = near_groups(_compared(table), threshold=request.near_threshold, progress=progress)
        near = _num_on_two_sides(clusters, sides)
    prompts = column_digests(table.rows, "prompt_key")
    prompt, side_of_prompt = prompts.first(), sides[prompts.positions]
    is_trained = np.zeros(len(prompt), dtype=bool)
    is_trained[prompt[side_of_prompt == SIDES.index("train")]] = True
    proof = SplitProof(
        num_rows=len(sides),
        exact=_num_shared(column_digests(table.rows, "content_key"), sides),
        near_duplicate=near,
        same_group=same_group,
        same_prompt=int((is_trained[prompt] & (side_of_prompt != SIDES.index("train"))).sum()),
        continued=int((sides != sides[_continued(table)]).sum()),
    )
    if proof.exact or proof.near_duplicate or proof.same_group or proof.continued:
        raise LeakageError(
            f"the split leaks: {proof.exact} texts, {proof.near_duplicate} clusters of near-duplicates and "
            f"{proof.same_group} groups are on two sides, and {proof.continued} conversations with what continues them",
            expected="0 of each",
            do="nothing was written; this is a fault of Luthier: please report it with the options you gave",
        )
    return proof


def _groups(request: SplitRequest, path: Path) -> pl.Series:
    found = StringColumn()
    for record in read_records(open_source(path)):
        if isinstance(record.item, Row):
            found.append(group_of(record.item.fields, request.group_by))
    return found.series()


def _continued(table: AuditTable) -> npt.NDArray[np.int64]:
    """Of rows read back: for each the first one that it continues."""
    continuations = Continuations()
    for record in read_records(open_source(table.path)):
        if isinstance(record.item, Row):
            continuations.add(mapped_row(record.item, table))
    return continuations.continued()


def _compared(table: AuditTable) -> TextColumn:
    """The texts that near-duplicates are searched in: without thoughts, and without what nearly all prompts begin with.

    Under a long system prompt every row would be near to every other. The beginning ends where a word does, whatever
    the order of the rows.
    """
    shared = common_prefix(table.rows.texts("prompt"))
    shared = shared[: max((at for at, sign in enumerate(shared, 1) if sign.isspace()), default=0)]
    return table.rows.texts("said", "text", without=shared if len(shared.split()) >= _FEWEST_WORDS else "")


def _num_shared(values: Digests, sides: Codes) -> int:
    """How many values are on more than one side; rows without a value are left out."""
    return _num_on_two_sides(values.first(), sides[values.positions])


def _num_on_two_sides(numbers: npt.NDArray[np.int64], sides: Codes) -> int:
    """How many of the numbers, below their count, are on more than one side."""
    num_sides = np.zeros(len(numbers), dtype=np.int8)
    for side in range(len(SIDES)):
        is_there = np.zeros(len(numbers), dtype=bool)
        is_there[numbers[sides == side]] = True
        num_sides += is_there
    return int((num_sides > 1).sum())


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
    for _, raw in read_raw_records(open_source(path)):
        num += 1
        total += int.from_bytes(hashlib.sha256(raw or b"").digest(), "big")
    # A sum of digests does not depend on order, and unlike XOR a line that occurs twice does not cancel out.
    return num, total % 2**256


def split_summary(
    request: SplitRequest,
    table: AuditTable,
    columns: SplitColumns,
    groups: Groups,
    codes: Codes,
    written: Mapping[Split, Path],
    proof: SplitProof,
) -> dict[str, Any]:
    """The document.

    Args:
        request: what was split, and how.
        table: the rows as they were read.
        columns: groups and strata.
        groups: what stays together.
        codes: int8 [groups], the side of each group as a place in `SIDES`.
        written: the file of each side.
        proof: of the written files.
    """
    sides_of_rows = codes[groups.of_row]
    num_rows = np.bincount(sides_of_rows, minlength=len(SIDES)).tolist()
    num_groups = np.bincount(codes, minlength=len(SIDES)).tolist()
    largest = int(groups.sizes.max())
    asked: dict[Split, float] = {"validation": request.validation, "held_out": request.held_out}
    # Rounded: 1 - 0.1 - 0.2 is 0.7000000000000001 in binary.
    asked["train"] = round(1 - sum(asked.values()), 12)
    sides = {
        name: {
            "file": path.name,
            "sha256": sha256_file(path),
            "num_rows": num_rows[SIDES.index(name)],
            "num_groups": num_groups[SIDES.index(name)],
            "fraction_asked": asked[name],
            "fraction": num_rows[SIDES.index(name)] / len(sides_of_rows),
        }
        for name, path in written.items()
    }
    return {
        "file": table.file,
        "sha256": table.sha256,
        "num_rows": len(sides_of_rows),
        "num_groups": len(codes),
        "largest_group_rows": largest,
        "seed": request.seed,
        "grouped_by": columns.grouped_by,
        "grouping": columns.reason,
        "stratified_by": request.stratify_by,
        "near_threshold": request.near_threshold,
        "mapping": dict(request.mapping or {}),
        "shape": table.shape,
        "shape_reason": table.shape_reason,
        "sides": sides,
        "strata": _strata_table(columns, sides_of_rows, list(written)) if request.stratify_by is not None else {},
        "proof": proof.as_json(),
        "warnings": _warnings(request, table, sides, largest),
    }


def _strata_table(columns: SplitColumns, sides: Codes, written: list[Split]) -> dict[str, dict[str, int]]:
    """Stratum -> side -> rows."""
    frame = pl.DataFrame({"stratum": columns.strata, "side": sides})
    counts = {(stratum, SIDES[code]): num for stratum, code, num in frame.group_by("stratum", "side").len().iter_rows()}
    strata = sorted({stratum for stratum, _ in counts})
    return {stratum: {name: counts.get((stratum, name), 0) for name in written} for stratum in strata}


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
            said.append(f"{name} has {part['fraction']:.1%} of the rows instead of {part['fraction_asked']:.1%}: "
                        "groups are kept whole")  # fmt: skip
    if table.shape is None:
        said.append(
            f"the rows fit no shape ({table.shape_reason}); whether they are the same is decided by all their texts"
        )
    elif table.problems:
        num = len({problem.line for problem in table.problems})
        said.append(f"{num:,} rows do not fit the shape {table.shape}; `luthier data audit` names them")
    if request.near_threshold is None:
        said.append("near-duplicates were not searched for, so they may be on both sides")
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
    request: SplitRequest,
    *,
    progress: Progress | None = None,
    near_groups: NearGroups = near_duplicate_groups,
    spill: Spill | None = None,
    workers: RowWorkers = IN_PROCESS,
) -> FileSplit:
    """Write train.jsonl, validation.jsonl, held_out.jsonl (a fraction of 0 writes none) and split.json into a folder.

    Rows that share a group, say the same after normalisation, or are near-duplicates of each other are on one side.
    The line of a JSONL row passes through byte for byte. What is written is read again and proved to be without leak
    before it is moved into place, split.json last. The same rows, options and seed give the same sides for any
    order of the rows. Rows and keys beyond the budget of `spill` are on disk (None: a separate budget). `workers` map
    and compare the rows.

    Raises:
        NotFoundError: there is no such file.
        DataError: rows cannot be read, fractions or fields are wrong, or there are too few groups.
        ConflictError: the folder holds an earlier split, and `force` is not set.
        RequestError: an output is the input.
        LeakageError: the proof failed: nothing was written.
    """
    request = with_mapped_group(request)
    _check_asked(request)
    finals: dict[Split, Path] = {side: request.folder / f"{side}.jsonl" for side in SIDES}
    summary = request.folder / SUMMARY
    progress = progress or SilentProgress()
    source = open_source(request.file)
    check_outputs([*finals.values(), summary], [request.file])
    check_free([summary], force=request.force)

    spill = spill or Spill()
    table = build_table(request.file, mapping=request.mapping, progress=progress, spill=spill, workers=workers)
    check_readable(table)
    columns = read_columns(request, table)
    near = None
    if request.near_threshold is not None:
        # Near-duplicates are joined with groups into components before the split: one on each side would be a leak.
        near = near_groups(_compared(table), threshold=request.near_threshold, progress=progress)
    groups = _components(table, columns, near, request.seed)
    codes = _sides(request, groups, columns)

    with working_folder(summary) as work:
        written = _write(source.path, codes[groups.of_row], work, progress)
        # The file was read three times: sides of an earlier version would be given to other rows.
        if sha256_file(request.file) != table.sha256:
            raise changed_while_read(source.name)
        # Before anything is moved into place: a leak leaves the folder unchanged.
        proof = prove(request, written, columns.grouped_by, near_groups, work, progress, spill, workers)
        document = split_summary(request, table, columns, groups, codes, written, proof)
        stale = [path for name, path in finals.items() if name not in written and path.exists()]
        check_free(stale, force=request.force)
        document["removed"] = [path.name for path in stale]
        made = work / SUMMARY
        made.write_bytes(json_utf8(document, indent=2) + b"\n")
        publish({**{written[name]: finals[name] for name in written}, made: summary}, force=request.force)
        for path in stale:  # of an earlier split, so it would leak into this one
            path.unlink()
    return FileSplit(request.folder, document, proof)


def _check_asked(request: SplitRequest) -> None:
    check_fractions(validation=request.validation, held_out=request.held_out)
    if request.validation + request.held_out == 0:
        raise DataError(
            "validation = 0 and held_out = 0 leave nothing to split off",
            expected="at least one fraction above 0",
            do="give --held-out, --validation or both",
        )


@dataclass(frozen=True, slots=True)
class Groups:
    """What stays together.

    Attributes:
        hashes: uint64 [k, 2], of the name of each group.
        of_row: int64 [n], the group of each row.
        sizes: int64 [k], rows of each group.
    """

    hashes: U64
    of_row: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def _components(table: AuditTable, columns: SplitColumns, near: npt.NDArray[np.int64] | None, seed: int) -> Groups:
    """What must stay together; each by the least group or content key in it, so that the order of rows has no part."""
    groups = columns.groups
    by_group = first_positions(RowFrames.of(pl.DataFrame({"group": groups})), "group")
    roots = united(by_group, first_positions(table.rows), columns.continued, *([] if near is None else [near]))
    firsts, of_row = np.unique(roots, return_inverse=True)
    sizes = np.bincount(of_row)
    hashes, members = [hashes_of((), seed)], []
    for start, part in table.rows.parts("content_key"):
        inside = of_row[start : start + part.height]
        frame = part.select(
            pl.coalesce(groups.slice(start, part.height).alias("group"), "content_key").alias("name"),
            pl.lit(pl.Series(inside)).alias("of"),
        )
        # Components are numbered by their first rows, so these come in their order.
        own = frame["name"].filter(pl.Series(firsts[inside] == np.arange(start, start + part.height)))
        hashes.append(hashes_of(own, seed))
        # Only what has several rows has a choice of names.
        members.append(frame.filter(pl.Series(sizes[inside] > 1)).group_by("of").agg(pl.col("name").min()))
    least = pl.concat(members).group_by("of").agg(pl.col("name").min())
    found = np.concatenate(hashes)
    found[least["of"].to_numpy()] = hashes_of(least["name"], seed)
    return Groups(found, of_row, sizes)


def _strata(groups: Groups, strata: pl.Series) -> npt.NDArray[np.int64]:
    """The stratum that most rows of each group are in, strata numbered by name."""
    numbers = strata.rank("dense").to_numpy().astype(np.int64) - 1
    return majority(groups.of_row, numbers)


def _sides(request: SplitRequest, groups: Groups, columns: SplitColumns) -> Codes:
    try:
        return group_sides(
            groups.hashes,
            groups.sizes,
            validation=request.validation,
            held_out=request.held_out,
            strata=_strata(groups, columns.strata) if request.stratify_by is not None else None,
            noun="groups" if columns.grouped_by else "different texts",
        )
    except DataError as error:
        do = error.do
        if request.near_threshold is not None:
            do += f"; near-duplicates (Jaccard {request.near_threshold} and up) were kept together"
        if columns.grouped_by:
            do += f"; {columns.reason}"
        raise DataError(error.came, expected=error.expected, do=do) from error


def _write(path: Path, sides: Codes, folder: Path, progress: Progress) -> dict[Split, Path]:
    """The rows as lines, each in the file of its side."""
    there = set(np.unique(sides).tolist())
    written = {side: folder / f"{side}.jsonl" for code, side in enumerate(SIDES) if code in there}
    with ExitStack() as stack, progress.task("write rows", len(sides), "row") as task:
        files: dict[int, IO[bytes]] = {
            SIDES.index(side): stack.enter_context(file.open("wb")) for side, file in written.items()
        }
        for code, (_, raw) in zip(sides.tolist(), read_raw_records(open_source(path)), strict=True):
            files[code].write((raw or b"") + b"\n")
            task.advance()
    return written
