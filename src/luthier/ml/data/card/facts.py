"""What the rows themselves say for the card: their fields and where they come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from luthier.core.dataset import Row
from luthier.core.digest import sha256_file
from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.files.source import Format, open_source
from luthier.ml.data.provenance import PROVENANCE, source_of
from luthier.ml.data.rows.columns import ColumnScan, ValueType
from luthier.ml.data.rows.rows import read_rows

SPLIT_FILE: Final = "split.json"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One data file of the dataset.

    Attributes:
        split: the name by which the hub knows it.
        num_rows: those that could be read.
    """

    path: Path
    split: str
    format: Format
    sha256: str
    num_bytes: int
    num_rows: int
    num_unreadable: int
    columns: dict[str, ValueType]


@dataclass
class Origins:
    """Where rows come from, counted over the rows of one file.

    Attributes:
        sources: documents by number of rows.
        licences: by number of rows, of those that state one.
        teachers: models that wrote synthetic rows.
        num_with_provenance: rows that carry a `provenance`.
    """

    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    teachers: Counter[str] = field(default_factory=Counter)
    num_synthetic: int = 0
    num_with_provenance: int = 0

    def add(self, fields: Mapping[str, Any]) -> None:
        """Take one row into account."""
        if (source := source_of(fields)) is not None:
            self.sources[source] += 1
        found = fields.get(PROVENANCE)
        provenance = found if isinstance(found, dict) else {}
        self.num_with_provenance += bool(provenance)
        licence = provenance.get("licence", fields.get("licence", fields.get("license")))
        if isinstance(licence, str) and licence.strip():
            self.licences[licence.strip()] += 1
        if provenance.get("synthetic") is True:
            self.num_synthetic += 1
            teacher = provenance.get("teacher")
            self.teachers[teacher if isinstance(teacher, str) and teacher else "not stated"] += 1


def look(path: Path, split: str, progress: Progress | None = None) -> tuple[FileFacts, Origins]:
    """Read a file once, streaming.

    Raises:
        NotFoundError, DataError: as `data.rows.read_rows` does.
    """
    source = open_source(path)
    scan, origins, num_rows, num_unreadable = ColumnScan(), Origins(), 0, 0
    with (progress or SilentProgress()).task(f"describe {source.name}", None, "row") as task:
        for row in read_rows(source):
            if isinstance(row, Row):
                scan.add(row.fields)
                origins.add(row.fields)
                num_rows += 1
            else:
                num_unreadable += 1
            task.advance()
    facts = FileFacts(
        path=path,
        split=split,
        format=source.format,
        sha256=sha256_file(path),
        num_bytes=path.stat().st_size,
        num_rows=num_rows,
        num_unreadable=num_unreadable,
        columns=scan.columns(),
    )
    return facts, origins


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """The files of the split that a file belongs to.

    Attributes:
        note: where a split.json is there but is not about this file.
    """

    files: dict[str, Path]
    note: str = ""


def split_beside(path: Path) -> SplitFiles:
    """The sides of the split that `path` is one of, by name, where a split.json lies beside it and its digests hold.

    A file without one is alone under the name `train`, as the hub calls the only split.
    """
    alone = {"train": path}
    summary = path.parent / SPLIT_FILE
    if not summary.is_file():
        return SplitFiles(alone)
    try:
        sides = json.loads(summary.read_text(encoding="utf-8"))["sides"]
        named = {
            str(name): (path.parent / Path(side["file"]).name, str(side["sha256"])) for name, side in sides.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return SplitFiles(alone, f"{SPLIT_FILE} beside the file cannot be read ({type(error).__name__})")
    if not any(other.name == path.name for other, _ in named.values()):
        return SplitFiles(alone, f"{SPLIT_FILE} beside the file is about other files")
    for other, digest in named.values():
        if not other.is_file() or sha256_file(other) != digest:
            return SplitFiles(alone, f"{SPLIT_FILE} beside the file does not fit {other.name} as it is now")
    return SplitFiles({name: other for name, (other, _) in named.items()})
