"""The first rows of a streamed source: what shape its rows have, and about how many there are."""

from __future__ import annotations

import gzip
import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from luthier.core.data_stream import Bounds
from luthier.core.dataset import Row
from luthier.core.errors import DataError
from luthier.ml.data.files.read_parquet import num_rows_of_parquet
from luthier.ml.data.files.source import WORKBOOKS, Source
from luthier.ml.data.rows.read_json import JsonLine
from luthier.ml.data.rows.rows import is_in_fraction, read_as, read_rows
from luthier.ml.data.rows.shapes import ShapeDetector, check_mapping
from luthier.ml.data.stream.reading import Selection, Shard, no_rows
from luthier.ml.data.stream.records import Place, RawRecord, records_from
from luthier.ml.data.stream.rows import SourceShape, mapped

_Z: Final = 1.959963984540054
_MEASURED_BYTES: Final = 1 << 24
"""Unpacked bytes by which the packing of gzip data is measured: far more than are read ahead of them."""
_MOST_READ: Final = 50
"""Of a fraction of a source so many times the wanted rows are read at most, as long as one was found."""
_COUNTED: Final = ("parquet", "json", *WORKBOOKS)
"""Formats whose rows are counted: Parquet has their number, the others are read whole in any case."""


@dataclass(frozen=True, slots=True)
class SourceSample:
    """The first rows of a source.

    Attributes:
        records: the rows.
        shape: how they are read.
        num_rows: of all shards, as far as they are used; None where it cannot be estimated. Both ends are equal where
            it is known.
    """

    records: tuple[RawRecord, ...]
    shape: SourceShape
    num_rows: Bounds | None


@dataclass(frozen=True, slots=True)
class UsedPart:
    """How much of a source is used; all of it where both are None.

    Attributes:
        fraction: of its rows, by a stable hash of each.
        num_rows: its first ones, in the order of its files.
    """

    fraction: float | None = None
    num_rows: int | None = None

    def selection(self, name: str, shape: SourceShape) -> Selection | None:
        """What chooses the rows; None where all of them are used.

        Args:
            name: of the source.
            shape: how its rows are read.
        """
        if self.fraction is None:
            return None if self.num_rows is None else Selection(name, self.num_rows)
        return Selection(name, is_used=partial(_is_in_fraction, shape, self.fraction))


ALL: Final = UsedPart()


def _is_in_fraction(shape: SourceShape, fraction: float, record: RawRecord) -> bool:
    try:
        return is_in_fraction(mapped(record, shape), fraction)
    except DataError:
        return True  # a wrong row ends the run when its turn comes, as everywhere


def sample_source(
    name: str,
    shards: Sequence[Shard],
    sizes: Sequence[int | None],
    mapping: Mapping[str, str] | None,
    num: int,
    part: UsedPart = ALL,
) -> SourceSample:
    """Read the first rows of a source that are used, from as many of its shards as that takes.

    Args:
        name: of the source.
        shards: of the source, in order.
        sizes: of these in bytes, as they are stored; None where that is not known.
        mapping: field of the shape -> column; None where it is to be found.
        num: of rows.
        part: how much of the source is used.

    Raises:
        DataError: no shard has a row, one cannot be read, the rows have no shape that can be trained on, or the source
            has fewer rows than are to be used.
    """
    asked = dict(mapping or {})
    check_mapping(asked)
    num = num if part.num_rows is None else min(num, part.num_rows)
    first = _FirstRows(shards, sizes, asked)
    records = first.read(num)
    shape = first.shape()
    selection = part.selection(name, shape)
    if selection is not None and selection.is_used is not None:
        records = [one for one in records if selection.is_used(one)]
        while len(records) < num and (first.num_read < _MOST_READ * num or not records):
            if not (more := first.read(num)):
                break
            records += [one for one in more if selection.is_used(one)]
        if not records:
            raise DataError(
                f"none of the {first.num_read:,} rows of source {name} is among the fraction {part.fraction:g} of them",
                expected="at least one row",
                do="raise the fraction",
            )
    return SourceSample(tuple(records[:num]), shape, _used_rows(name, first, part, len(records)))


def _used_rows(name: str, first: _FirstRows, part: UsedPart, num_used: int) -> Bounds | None:
    """How many rows of the source are used.

    num_used: of those that were read.
    """
    found = first.num_rows()
    if found is None:
        return None
    if part.fraction is not None:
        is_whole = found == (first.num_read, first.num_read)
        return Bounds(num_used, num_used) if is_whole else _binomial(found, part.fraction, num_used)
    if part.num_rows is None:
        return found
    if found.low == found.high and found.high < part.num_rows:
        raise DataError(
            f"source {name} has {found.high:,.0f} rows, and rows: {part.num_rows:,} requests more",
            expected=f"at most {found.high:,.0f}",
            do="lower rows; to train on rows of this source more often, give each source a weight",
        )
    return Bounds(min(found.low, part.num_rows), min(found.high, part.num_rows))


def _binomial(rows: Bounds, fraction: float, num_used: int) -> Bounds:
    """How many of about so many rows are used, where each is with this probability."""
    low, high = (
        one * fraction + side * _Z * math.sqrt(one * fraction * (1 - fraction))
        for one, side in ((rows.low, -1), (rows.high, 1))
    )
    return Bounds(max(float(num_used), low), max(float(num_used), high))


class _FirstRows:
    """The rows of a source from the first one on, a few at a time.

    Args:
        shards: of the source, in order.
        sizes: of these in bytes, as they are stored; None where that is not known.
        mapping: field of the shape -> column.
    """

    def __init__(self, shards: Sequence[Shard], sizes: Sequence[int | None], mapping: dict[str, str]) -> None:
        self._shards, self._sizes, self._mapping = shards, list(sizes), mapping
        self._detector: ShapeDetector | None = None
        self._is_settled = False
        self._measured = _Measured()
        self._records = self._read_all()
        # The shard that is read: its place, and how much of it has been read.
        self._open: tuple[int, Source] | None = None
        self._num_in_shard, self._behind = 0, Place()

    @property
    def num_read(self) -> int:
        """Rows so far."""
        return len(self._measured.sizes)

    def read(self, num: int) -> list[RawRecord]:
        """At most so many of the next rows; fewer at the end alone.

        Raises:
            DataError: a shard or a row of it cannot be read.
        """
        return list(islice(self._records, num))

    def _read_all(self) -> Generator[RawRecord, None, None]:
        for place, shard in enumerate(self._shards):
            source = shard.open()
            if source is None:
                self._sizes[place] = 0
                continue
            self._open, self._num_in_shard, self._behind = (place, source), 0, Place()
            if self._sizes[place] is None:
                self._sizes[place] = source.path.stat().st_size  # it is on this machine now
            self._detector = self._detector or ShapeDetector(source.name, self._mapping, read_as(source))
            for record, behind in records_from(source, Place(), shard.source):
                self._behind = behind
                self._num_in_shard += 1
                self._add(record)
                yield record
            self._end_shard()

    def _add(self, record: RawRecord) -> None:
        row = record.row()
        if not isinstance(row, Row):
            raise DataError(
                f"row {row.file}:{row.line} of a streamed source cannot be read: {row.reason}",
                expected="rows that can be read",
                do="correct the file; `luthier data audit FILE` checks all of its rows",
                problems=[row],
            )
        if self._detector is not None and not self._is_settled:
            self._detector.add(row)
        self._measured.sizes.append(_stored_bytes(record))

    def _end_shard(self) -> None:
        if self._open is not None:
            place, source = self._open
            self._measured.add_shard(source, self._sizes[place], self._num_in_shard, self._behind.offset)
            self._open = None

    def shape(self) -> SourceShape:
        """How the rows are read, as those that were read so far show.

        Raises:
            DataError: there is no row, or none that can be trained on.
        """
        if self._detector is None or not self.num_read:
            raise no_rows(", ".join(shard.name for shard in self._shards[:3]))
        self._is_settled = True
        found = self._detector.settle(group=None)
        return SourceShape(found.shape, found.reason, found.mapping)

    def num_rows(self) -> Bounds | None:
        """How many rows the source has, by those that were read; nothing can be read after that."""
        self._records.close()  # and with it the file
        is_whole = self._open is None or self._is_at_the_end()
        self._end_shard()
        return Bounds(self.num_read, self.num_read) if is_whole else self._measured.all_rows(self._sizes, self.num_read)

    def _is_at_the_end(self) -> bool:
        """Whether the last shard is read to its end; other shards are not opened to find out."""
        if self._open is None or self._open[0] < len(self._shards) - 1:
            return False
        source = self._shards[-1].source
        return next(records_from(self._open[1], self._behind, source), None) is None


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
        # Of formats without byte offsets the texts of the rows represent their bytes.
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
        # First rows of one size say nothing of later ones: equal ends would pass for a number that is known.
        low, high = min(rows / (1 + _Z * error), rows - 1), max(rows * (1 + _Z * error), rows + 1)
        return Bounds(max(float(num_sampled), low), max(float(num_sampled + 1), high))


def _stored_bytes(record: RawRecord) -> int:
    """About what a record takes in its file, unpacked."""
    if isinstance(record.content, JsonLine):
        return record.content.length
    if not isinstance(record.content, Row):
        return 0
    return sum(len(str(value).encode("utf-8", "surrogatepass")) + 1 for value in record.content.fields.values())


def _packed_fraction(source: Source) -> float:
    """Stored bytes of each unpacked one, by the beginning of the file.

    The size at the end of gzip data is that of their last member alone, modulo 4 GiB (RFC 1952): of joined files, or of
    bgzip with its empty last member, it says nothing of the whole.
    """
    if source.is_as_stored:
        return 1.0
    if not source.is_gzip:  # of text that is mostly ASCII
        return 4.0 if source.encoding.startswith("utf-32") else 2.0
    with source.path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
        num_bytes = len(file.read(_MEASURED_BYTES))
        return packed.tell() / max(1, num_bytes)
