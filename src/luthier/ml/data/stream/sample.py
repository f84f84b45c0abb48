"""The first rows of a streamed source: what shape its rows have, and about how many there are."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.data_stream import Bounds
from luthier.core.dataset import Row
from luthier.core.errors import DataError
from luthier.ml.data.files.read_parquet import num_rows_of_parquet
from luthier.ml.data.files.source import Source
from luthier.ml.data.rows.read_json import JsonLine
from luthier.ml.data.rows.rows import read_as, read_rows
from luthier.ml.data.rows.shapes import ShapeDetector, check_mapping
from luthier.ml.data.stream.reading import Shard, no_rows
from luthier.ml.data.stream.records import Place, RawRecord, records_from
from luthier.ml.data.stream.rows import SourceShape

_Z: Final = 1.959963984540054
_SIZE_BYTES: Final = 4
_COUNTED: Final = ("parquet", "json", "xlsx")
"""Formats whose rows are counted: Parquet has their number, the others are read whole in any case."""


@dataclass(frozen=True, slots=True)
class SourceSample:
    """The first rows of a source.

    Attributes:
        records: the rows.
        shape: how they are read.
        num_rows: of all shards; None where a server does not state their sizes. Both ends are equal where it is known.
    """

    records: tuple[RawRecord, ...]
    shape: SourceShape
    num_rows: Bounds | None


def sample_source(
    shards: Sequence[Shard], sizes: Sequence[int | None], mapping: Mapping[str, str] | None, num: int
) -> SourceSample:
    """Read the first rows of a source, from as many of its shards as that takes.

    Args:
        shards: of the source, in order.
        sizes: of these in bytes, as they are stored; None where that is not known.
        mapping: field of the shape -> column; None where it is to be found.
        num: of rows.

    Raises:
        DataError: no shard has a row, one cannot be read, or the rows have no shape that can be trained on.
    """
    asked = dict(mapping or {})
    check_mapping(asked)
    records: list[RawRecord] = []
    detector: ShapeDetector | None = None
    measured = _Measured()
    is_whole = True
    for place, shard in enumerate(shards):
        if len(records) == num:
            is_whole = False
            break
        source = shard.open()
        if source is None:
            continue
        detector = detector or ShapeDetector(source.name, asked, read_as(source))
        before = len(records)
        behind = Place()
        for record, behind in records_from(source, Place(), shard.source):
            row = record.row()
            if not isinstance(row, Row):
                raise DataError(
                    f"row {row.file}:{row.line} of a streamed source cannot be read: {row.reason}",
                    expected="rows that can be read",
                    do="correct the file; `luthier data audit FILE` checks all of its rows",
                    problems=[row],
                )
            detector.add(row)
            records.append(record)
            measured.sizes.append(_stored_bytes(record))
            if len(records) == num:
                is_whole = place == len(shards) - 1 and next(records_from(source, behind, shard.source), None) is None
                break
        measured.add_shard(source, sizes[place], len(records) - before, behind.offset)
    if detector is None or not records:
        raise no_rows(", ".join(shard.name for shard in shards[:3]))
    found = detector.settle(group=None)
    count = Bounds(len(records), len(records)) if is_whole else measured.all_rows(sizes, len(records))
    return SourceSample(tuple(records), SourceShape(found.shape, found.reason, found.mapping), count)


class _Measured:
    """Rows and bytes of the shards that were looked into."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._num_rows = self._num_bytes = 0
        self._num_shards = 0
        self._is_counted = True

    def add_shard(self, source: Source, stored_bytes: int | None, num_rows: int, offset: int) -> None:
        """A shard of which some rows were read, up to an offset of its unpacked bytes."""
        self._num_shards += 1
        if source.format in _COUNTED:
            is_parquet = source.format == "parquet"
            self._num_rows += num_rows_of_parquet(source) if is_parquet else sum(1 for _ in read_rows(source))
            self._num_bytes += stored_bytes or source.path.stat().st_size
            return
        self._is_counted = False
        # Of formats without byte offsets the texts of the rows stand for their bytes.
        num_bytes = offset or sum(self.sizes[-num_rows:]) if num_rows else 0
        self._num_rows += num_rows
        self._num_bytes += round(num_bytes * _packed_fraction(source))

    def all_rows(self, sizes: Sequence[int | None], num_sampled: int) -> Bounds | None:
        """Rows of all shards, by the bytes of those that were read."""
        known = [size for size in sizes if size is not None]
        if self._is_counted and self._num_shards == len(sizes):
            return Bounds(self._num_rows, self._num_rows)
        if len(known) < len(sizes) or not self._num_bytes:
            return None
        rows = sum(known) * self._num_rows / self._num_bytes
        mean = statistics.fmean(self.sizes)
        # The relative error of the mean size of a row is that of the number of rows.
        error = statistics.stdev(self.sizes) / mean / math.sqrt(len(self.sizes)) if len(self.sizes) > 1 else 1.0
        low = rows / (1 + _Z * error)
        return Bounds(max(float(num_sampled), low), max(float(num_sampled), rows * (1 + _Z * error)))


def _stored_bytes(record: RawRecord) -> int:
    """About what a record takes in its file, unpacked."""
    if isinstance(record.content, JsonLine):
        return record.content.length
    if not isinstance(record.content, Row):
        return 0
    return sum(len(str(value).encode("utf-8", "surrogatepass")) + 1 for value in record.content.fields.values())


def _packed_fraction(source: Source) -> float:
    """Stored bytes of each unpacked one; gzip data end with their unpacked size, modulo 4 GiB (RFC 1952)."""
    if not source.is_gzip:
        return 1.0
    packed = source.path.stat().st_size
    with source.path.open("rb") as file:
        file.seek(-_SIZE_BYTES, os.SEEK_END)
        unpacked = int.from_bytes(file.read(_SIZE_BYTES), "little")
    while unpacked < packed:
        unpacked += 1 << 32
    return packed / unpacked
