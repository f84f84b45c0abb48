"""The contents of split.json: the options, the sides in figures, the proof, and what a person should know."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.dataset import Split
from luthier.core.digest import sha256_file
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.split.split_columns import SplitColumns
from luthier.ml.data.split.split_proof import SplitProof
from luthier.ml.data.split.split_request import SplitRequest


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
            f"the rows fit no shape ({table.shape_reason}); whether they are the same is told by all their texts"
        )
    elif table.problems:
        num = len({problem.line for problem in table.problems})
        said.append(f"{num:,} rows do not fit the shape {table.shape}; `luthier data audit` names them")
    if request.near_threshold is None:
        said.append("near-duplicates were not searched for, so they may stand on both sides")
    return said
