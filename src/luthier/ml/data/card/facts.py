"""What a dataset card is made from: the request, and the rows themselves (fields, origins, splits next to the file)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from luthier.core.dataset import Row
from luthier.core.ids import sha256_file
from luthier.core.ports import Progress, SilentProgress
from luthier.core.results.audit import Audit
from luthier.ml.data.files.source import Format, open_source
from luthier.ml.data.provenance import PROVENANCE, source_of
from luthier.ml.data.rows.columns import ColumnScan, ValueType
from luthier.ml.data.rows.rows import read_rows

SPLIT_FILE: Final = "split.json"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One data file of the dataset.

    Attributes:
        path: where it is.
        split: its name on the hub.
        format: of its unpacked content.
        sha256: hex digest of its bytes.
        num_bytes: its size on disk.
        num_rows: rows that could be read.
        num_unreadable: rows that could not.
        columns: types of its fields by name.
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
        teachers: models that wrote synthetic rows, by number of rows.
        num_synthetic: rows that are marked as synthetic.
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
        # The row's own record first; then both spellings of a field.
        licence = provenance.get("licence", fields.get("licence", fields.get("license")))
        if isinstance(licence, str) and licence.strip():
            self.licences[licence.strip()] += 1
        if provenance.get("synthetic") is True:
            self.num_synthetic += 1
            teacher = provenance.get("teacher")
            self.teachers[teacher if isinstance(teacher, str) and teacher else "not stated"] += 1


def look(path: Path, split: str, progress: Progress | None = None) -> tuple[FileFacts, Origins]:
    """Read a file once, streaming.

    Args:
        path: the file.
        split: the name of its split.
        progress: shows the reading.

    Returns:
        What the file holds, and where its rows come from.

    Raises:
        NotFoundError: there is no such file.
        DataError: the file as a whole cannot be read.
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
        files: by side.
        note: why a split.json next to the file is not used; empty where it is used, or where there is none.
    """

    files: dict[str, Path]
    note: str = ""


def split_beside(path: Path) -> SplitFiles:
    """The sides of the split that `path` is one of, by name, where a split.json is next to it and its digests match.

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
        return SplitFiles(alone, f"{SPLIT_FILE} next to the file cannot be read ({type(error).__name__})")
    # Checked before the digests: hashing files of another split would take minutes for nothing.
    if not any(other.name == path.name for other, _ in named.values()):
        return SplitFiles(alone, f"{SPLIT_FILE} next to the file is about other files")
    for other, digest in named.values():
        # By digest: a split.json may be left from an earlier split with the same names.
        if not other.is_file() or sha256_file(other) != digest:
            return SplitFiles(alone, f"{SPLIT_FILE} next to the file does not match {other.name}")
    return SplitFiles({name: other for name, (other, _) in named.items()})


NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class CardRequest:
    """The dataset and what a person states about it; None is not known, which the card states.

    Attributes:
        audit: of the described file.
        described: that file.
        files: all files of the dataset, the described one among them.
        origins: where the rows of the described file come from.
        name: shown as the title.
        description: what the dataset is, in a few sentences.
        licence: an SPDX id or the hub's.
        languages: ISO 639 codes.
        uses: its intended use.
        date: of the audit, ISO 8601.
        command: the one that made the card.
        split_note: why no split is described, where that needs a word.
    """

    audit: Audit
    described: FileFacts
    files: tuple[FileFacts, ...]
    origins: Origins
    name: str
    date: str
    command: str
    licence: str | None = None
    description: str | None = None
    languages: tuple[str, ...] = ()
    uses: str | None = None
    split_note: str = ""

    @property
    def licence_known(self) -> str | None:
        """The licence that was given, else the only one that all rows state."""
        if self.licence:
            return self.licence
        licences = self.origins.licences
        # Rows without a licence count against it: one unlicensed row keeps the whole from being licensed.
        whole = len(licences) == 1 and sum(licences.values()) == self.described.num_rows
        return next(iter(licences)) if whole else None

    @property
    def languages_seen(self) -> dict[str, int]:
        """Languages that the audit found, by number of rows, the most frequent first."""
        for finding in self.audit.findings:
            counts = finding.details.get("counts")
            is_mix = finding.check == "language" and finding.details.get("sort", "mix") == "mix"
            if is_mix and isinstance(counts, dict):
                pairs = [(str(name), value) for name, value in counts.items() if isinstance(value, int)]
                return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
        return {}

    @property
    def languages_known(self) -> tuple[str, ...]:
        """The languages that were given, else those of at least 5% of the rows whose language was determined."""
        if self.languages:
            return self.languages
        seen = self.languages_seen
        whole = sum(seen.values())
        return tuple(name for name, count in seen.items() if count >= 0.05 * whole and name.isalpha())
