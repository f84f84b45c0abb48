"""One version of a dataset, read for comparison: a key and a digest a row, never the rows themselves."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from luthier.core.dataset import Row, Shape
from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.core.ids import sha256_file
from luthier.core.ports import Progress
from luthier.core.text.counted import counted
from luthier.ml.data.audit.table import strings_in
from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.files.source import open_source
from luthier.ml.data.provenance import label_of, row_id_of
from luthier.ml.data.rows.columns import ColumnScan, ValueType
from luthier.ml.data.rows.formats import example_of
from luthier.ml.data.rows.rows import read_rows
from luthier.ml.data.rows.shapes import Decision, ShapeDetector, check_mapping
from luthier.ml.data.text.normalise import prompt_key

SPLIT_FILE: Final = "split.json"
NUM_SAMPLED: Final = 2_000


@dataclass(frozen=True, slots=True)
class VersionFile:
    """A data file of a version.

    Attributes:
        path: where it is.
        side: of the split, "" where there is none.
    """

    path: Path
    side: str


@dataclass(frozen=True, slots=True)
class Version:
    """What is known of a version.

    Attributes:
        path: of the file, or the folder of the split.
        files: its data files.
        shape: of its rows; None where they fit none.
        shape_reason: why, as a sentence.
        columns: types of the fields by name.
        num_bytes: size of all files.
        num_unreadable: rows that could not be read.
        labels: rows by label.
        rows: one line a row that could be read, in order: file (index in `files`), side, line, d1 and d2 (128 bits of
            the digest of all its fields), i1 and i2 (of its id; null where it has none), p1 and p2 (of its prompt; null
            likewise), k1 and k2 (of the field that was requested; null where none was), characters (of all strings in
            it).
        sample: texts of up to 2,000 rows, chosen by digest.
        notes: what a reader should know.
    """

    path: Path
    files: tuple[VersionFile, ...]
    shape: Shape | None
    shape_reason: str
    columns: dict[str, ValueType]
    num_bytes: int
    num_unreadable: int
    labels: Counter[str]
    rows: pl.DataFrame = field(repr=False)
    sample: pl.Series = field(repr=False)
    notes: tuple[str, ...]

    def id_of(self, file: int, line: int) -> str:
        """The id of a row, as messages name it."""
        return f"{self.files[file].path.name}:{line}"


def read_version(path: Path, progress: Progress, *, key: str | None, mapping: Mapping[str, str] | None) -> Version:
    """Read a data file, or a folder that `luthier data split` has written, twice, streaming.

    Args:
        path: a data file, or the folder of a split.
        progress: shows both passes.
        key: the field that names a row; a dot leads into an object. None for none.
        mapping: field of the shape -> column.

    Raises:
        NotFoundError: a file is missing.
        DataError: a file cannot be read, or a row has no key.
        RequestError: the folder has no split.json.
    """
    mapping = dict(mapping or {})
    check_mapping(mapping)
    files, notes = _files(path)
    detector, scan, num_unreadable = ShapeDetector(path.name, mapping), ColumnScan(), 0
    for file in files:
        with progress.task(f"check {file.path.name}", None, "row") as task:
            for row in read_rows(open_source(file.path)):
                if isinstance(row, Row):
                    detector.add(row)
                    scan.add(row.fields)
                else:
                    num_unreadable += 1
                task.advance()
    found, reason = _shape(detector, mapping)
    shape = found.shape if found is not None else None
    reader = _Reader(shape, found.mapping if found is not None else mapping, key)
    for place, file in enumerate(files):
        with progress.task(f"read {file.path.name}", None, "row") as task:
            for row in read_rows(open_source(file.path)):
                if isinstance(row, Row):
                    reader.add(place, row)
                task.advance()
    if num_unreadable:
        notes.append(f"{counted(num_unreadable, 'row')} of {path.name} cannot be read: not compared")
    return Version(
        path=path,
        files=tuple(files),
        shape=shape,
        shape_reason=reason,
        columns=scan.columns(),
        num_bytes=sum(file.path.stat().st_size for file in files),
        num_unreadable=num_unreadable,
        labels=reader.labels,
        rows=reader.frame([file.side for file in files]),
        sample=reader.sampled(),
        notes=tuple(notes),
    )


def rows_at(version: Version, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], dict[str, Any]]:
    """The fields of the rows at (file, line), read again."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for place, file in enumerate(version.files):
        lines = {line for number, line in wanted if number == place}
        if not lines:
            continue
        for row in read_rows(open_source(file.path)):
            if isinstance(row, Row) and row.line in lines:
                found[place, row.line] = row.fields
                lines.discard(row.line)
            if not lines:
                break
    return found


def _files(path: Path) -> tuple[list[VersionFile], list[str]]:
    if not path.is_dir():
        return [VersionFile(path, "")], []
    summary = path / SPLIT_FILE
    if not summary.is_file():
        raise RequestError(
            f"{path} is a folder without {SPLIT_FILE}",
            expected="a data file, or a folder that `luthier data split` has written",
            do="name one data file in it",
        )
    try:
        sides = json.loads(summary.read_text(encoding="utf-8"))["sides"]
        named = [(str(name), path / Path(side["file"]).name, str(side["sha256"])) for name, side in sides.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{summary} is not a description of a split: {type(error).__name__} {error}",
            expected="`sides`, each with a file and its sha256",
            do="split again with `luthier data split`, or compare the files one at a time",
        ) from error
    missing = [file.name for _, file, _ in named if not file.is_file()]
    if missing or not named:
        raise NotFoundError(
            f"{summary} names {', '.join(missing) or 'no file'}",
            expected="all files of the split next to it",
            do="copy them there, or split again",
        )
    # A note only: the files are compared as they are now.
    notes = [f"{file} is not as {summary} says (another sha256)" for _, file, digest in named
             if sha256_file(file) != digest]  # fmt: skip
    return [VersionFile(file, name) for name, file, _ in named], notes


def _shape(detector: ShapeDetector, mapping: Mapping[str, str]) -> tuple[Decision | None, str]:
    if not detector.num_rows:
        return None, "no row can be read"
    try:
        found = detector.settle(group=None)
    except DataError as error:
        if mapping:
            raise
        return None, error.came.split("\n", 1)[0]
    return found, found.reason


class _Reader:
    """Turns rows into numbers, 80 bytes a row."""

    def __init__(self, shape: Shape | None, mapping: Mapping[str, str], key: str | None) -> None:
        self._shape, self._mapping, self._key = shape, mapping, key
        self._places, self._lines, self._characters = array("L"), array("L"), array("Q")
        self._digests, self._ids, self._prompts, self._keys = bytearray(), bytearray(), bytearray(), bytearray()
        self._has_id, self._has_prompt = bytearray(), bytearray()
        self.labels: Counter[str] = Counter()
        self._sample: list[tuple[bytes, int, str]] = []

    def add(self, place: int, row: Row) -> None:
        """Take one row in."""
        texts = list(strings_in(row.fields))
        digest = _hash(_canonical(row.fields))
        self._places.append(place)
        self._lines.append(row.line)
        self._characters.append(sum(map(len, texts)))
        self._digests += digest
        # Keys of all kinds are kept: which one matches is settled when both versions are known.
        row_id, prompt = row_id_of(row.fields), self._prompt(row)
        self._has_id.append(row_id is not None)
        self._has_prompt.append(prompt is not None)
        self._ids += _hash(row_id or "")
        self._prompts += _hash(prompt or "")
        self._keys += _hash(_canonical(_value_at(row, self._key)) if self._key is not None else "")
        if (label := label_of(row.fields)) is not None:
            self.labels[label] += 1
        self._keep_for_sample(digest, "\n".join(texts))

    def frame(self, sides: list[str]) -> pl.DataFrame:
        """The rows as in `Version.rows`."""
        places = np.array(self._places, dtype=np.uint32)
        columns: dict[str, Any] = {"file": places, "line": np.array(self._lines, dtype=np.uint32)}
        columns["side"] = pl.Series([sides[place] for place in places.tolist()], dtype=pl.String)
        for letter, data, there in (
            ("d", self._digests, None),
            ("i", self._ids, self._has_id),
            ("p", self._prompts, self._has_prompt),
            ("k", self._keys, None),
        ):
            # [rows, 2]: 128 bits as two columns, since polars has no integers of that size.
            pairs = np.frombuffer(bytes(data), dtype="<u8").reshape(-1, 2)
            for number in (0, 1):
                column = pl.Series(pairs[:, number].copy(), dtype=pl.UInt64)
                if there is not None:
                    kept = pl.Series(np.frombuffer(bytes(there), dtype=np.uint8).astype(bool))
                    column = pl.select(pl.when(kept).then(column)).to_series()
                columns[f"{letter}{number + 1}"] = column
        columns["characters"] = np.array(self._characters, dtype=np.uint64)
        return pl.DataFrame(columns)

    def sampled(self) -> pl.Series:
        """The texts of the rows with the smallest digests, so that equal rows of two versions are both drawn."""
        self._sample.sort()
        return pl.Series([text for _, _, text in self._sample[:NUM_SAMPLED]], dtype=pl.String)

    def _keep_for_sample(self, digest: bytes, text: str) -> None:
        self._sample.append((digest, len(self._lines), text[:400]))
        # Cut back now and then: sorting at every row would cost more than the surplus.
        if len(self._sample) >= 4 * NUM_SAMPLED:
            self._sample.sort()
            del self._sample[NUM_SAMPLED:]

    def _prompt(self, row: Row) -> str | None:
        if self._shape is None:
            return None
        try:
            return prompt_key(example_of(row, self._shape, self._mapping, None))
        except BadFieldError:
            return None  # the row is compared all the same, by its fields


def _value_at(row: Row, key: str) -> Any:
    value: Any = row.fields
    # A column may have a dot in its name.
    for name in (key,) if key in row.fields else key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        raise DataError(
            f"row {row.id} has no {key!r}",
            expected="the key in every row of both versions",
            do=f"name another field with --key; this row has: {', '.join(row.fields)}",
        )
    return value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=repr)


def _hash(text: str) -> bytes:
    # Half a surrogate pair must not stop a comparison.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def lines_of(frame: pl.DataFrame) -> Iterator[tuple[int, int]]:
    """(file, line) of each row of a frame."""
    return zip(frame["file"].to_list(), frame["line"].to_list(), strict=True)
