"""Records in the order of a run: sources, shards and the shuffle buffer, to be left and taken up again at any place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.data_stream import LanePlace, StreamCounts, StreamPosition
from luthier.core.errors import DataError
from luthier.ml.data.files.source import Source, changed_while_read
from luthier.ml.data.stream.order import SourceChoice, buffered_after, draws_of, shard_order
from luthier.ml.data.stream.records import Place, RawRecord, records_from

_ROWS_A_MARK: Final = 1024
_MIB: Final = 2.0**20


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a streamed source.

    Attributes:
        source: place of its source in the list of sources.
        name: what messages call it.
        open: makes sure that it is on this machine and unchanged; None where it is empty.
        prefetch: begins to bring it to this machine in the background; whether that fails shows when it is opened.
    """

    source: int
    name: str
    open: Callable[[], Source | None]
    prefetch: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a source are used, of every pass the same.

    Attributes:
        name: of the source.
        num_rows: the first ones, in the order of its files; None for all.
        is_used: decides for each row by itself; None for all.
    """

    name: str
    num_rows: int | None = None
    is_used: Callable[[RawRecord], bool] | None = None


class _Lane:
    """The shards of one source, or of all sources without weights, read one after another in passes."""

    def __init__(
        self, number: int, shards: Sequence[Shard], seed: int, selections: Mapping[int, Selection], *, is_shuffled: bool
    ) -> None:
        self._number, self._shards, self._seed, self._is_shuffled = number, shards, seed, is_shuffled
        self._selections = selections
        # Most rows of the sources of which a number of rows is used.
        self._most = {
            source: num
            for source in sorted({shard.source for shard in shards})
            if source in selections and (num := selections[source].num_rows) is not None
        }
        self.num_empty = 0
        self.short = set[str]()
        self.begin(LanePlace())

    def begin(self, place: LanePlace) -> None:
        """Go to a place; nothing is read yet."""
        self.close()
        self._pass, self._at = place.pass_number, place.shard
        self._inside = Place(place.row, place.line, place.offset)
        self._num_used = dict(zip(self._most, place.num_used or (0,) * len(self._most), strict=True))
        order = shard_order(self._seed, self._number, self._pass, len(self._shards), is_shuffled=self._is_shuffled)
        # The first rows of a source are the same in every pass, so its files keep their order among themselves.
        in_order = {
            source: iter([n for n, one in enumerate(self._shards) if one.source == source]) for source in self._most
        }
        self._order = [next(in_order.get(self._shards[n].source, iter([n]))) for n in order]

    def close(self) -> None:
        """Let go of the file that is open."""
        self._records: Iterator[tuple[RawRecord, Place]] | None = None

    @property
    def place(self) -> LanePlace:
        """Where it is."""
        row, line, offset = self._inside
        num_used = tuple(self._num_used.values())
        return LanePlace(pass_number=self._pass, shard=self._at, row=row, line=line, offset=offset, num_used=num_used)

    @property
    def names(self) -> str:
        """The shards, for messages."""
        more = f" and {len(self._shards) - 3:,} more files" if len(self._shards) > 3 else ""
        return ", ".join(shard.name for shard in self._shards[:3]) + more

    def next(self) -> RawRecord | None:
        """The next record that is used; None at the end of a pass."""
        while self._at < len(self._order):
            shard = self._shards[self._order[self._at]]
            if not self._is_done(shard):
                if self._records is None:
                    self._records = self._opened(shard)
                for record, inside in self._records:
                    self._inside = inside
                    if self._uses(record):
                        return record
                self.num_empty += self._inside.row == 0
            self._records, self._inside = None, Place()
            self._at += 1
        self.short |= {
            f"{self._selections[source].name} ({self._num_used[source]:,} of {most:,} rows)"
            for source, most in self._most.items()
            if self._num_used[source] < most
        }
        return None

    def _opened(self, shard: Shard) -> Iterator[tuple[RawRecord, Place]]:
        source = shard.open()
        for number in self._order[self._at + 1 : self._at + 2]:
            if not self._is_done(self._shards[number]):
                self._shards[number].prefetch()
        return iter(()) if source is None else records_from(source, self._inside, shard.source)

    def _is_done(self, shard: Shard) -> bool:
        """Whether all rows of its source that are used have been read in this pass."""
        return shard.source in self._most and self._num_used[shard.source] >= self._most[shard.source]

    def _uses(self, record: RawRecord) -> bool:
        selection = self._selections.get(record.source)
        if selection is None:
            return True
        if selection.is_used is not None and not selection.is_used(record):
            return False
        if record.source in self._num_used:
            self._num_used[record.source] += 1
        return True

    def next_again(self) -> RawRecord:
        """The next record, of the next pass where this one has ended.

        Raises:
            DataError: no shard has a record.
        """
        found = self.next()
        if found is None:
            self.begin(LanePlace(pass_number=self._pass + 1))
            found = self.next()
        if found is None:
            raise no_rows(self.names)
        return found


def no_rows(names: str) -> DataError:
    """The error about streamed sources without a row."""
    return DataError(
        f"{names} hold no rows", expected="at least one row in the files of a source", do="check how they were written"
    )


def all_records(shards: Sequence[Shard], selections: Mapping[int, Selection]) -> Iterator[RawRecord]:
    """Every record that is used, once, in the order of the files.

    Args:
        shards: of any sources.
        selections: by source, of those of which a part is used.
    """
    lane = _Lane(0, shards, 0, selections, is_shuffled=False)
    while (record := lane.next()) is not None:
        yield record


class RecordStream:
    """The records of a run, one after another, without end.

    Args:
        lanes: shards of each source; all of them in one lane where there are no weights.
        weights: of the lanes; None where there is one.
        seed: of the run.
        buffer_size: records that the shuffle buffer holds; 1 keeps the order of the files.
        memory_bytes: what they may take in memory.
        selections: by source, of those of which a part is used.

    Attributes:
        epoch: number of the current one; 0 for sources with weights, which have no common end.
    """

    def __init__(
        self,
        lanes: Sequence[Sequence[Shard]],
        weights: Sequence[float] | None,
        *,
        seed: int,
        buffer_size: int,
        memory_bytes: int,
        selections: Mapping[int, Selection] | None = None,
    ) -> None:
        self._lanes = [
            _Lane(number, shards, seed, selections or {}, is_shuffled=buffer_size > 1)
            for number, shards in enumerate(lanes)
        ]
        self._choice = None if weights is None else SourceChoice(weights, seed)
        self._seed, self._size, self._memory_bytes = seed, buffer_size, memory_bytes
        self._num_empty_before, self._short_before = 0, set[str]()
        self._begin(0, tuple(lane.place for lane in self._lanes), 0)

    def _begin(self, epoch: int, lanes: tuple[LanePlace, ...], num_read: int) -> None:
        self.epoch, self._num_read, self._num_draws = epoch, num_read, 0
        self._num_epoch_rows: int | None = None
        self._words = draws_of(self._seed, epoch)
        self._buffer: list[tuple[int, RawRecord]] = []
        self._held_bytes = 0
        for lane, place in zip(self._lanes, lanes, strict=True):
            lane.begin(place)
        # Places behind each thousand records: from the one before the oldest record of the buffer it is filled again.
        self._marks: list[tuple[int, tuple[LanePlace, ...]]] = [(num_read, lanes)]

    @property
    def num_empty_shards(self) -> int:
        """Shards without a record that were passed over, each time that they were met."""
        return self._num_empty_before + sum(lane.num_empty for lane in self._lanes)

    @property
    def short_sources(self) -> tuple[str, ...]:
        """Sources that were read to their end and have fewer rows than are to be used, with both numbers."""
        return tuple(sorted(self._short_before.union(*(lane.short for lane in self._lanes))))

    @property
    def num_epochs(self) -> int:
        """Epochs that are complete; none of sources with weights, which have no common end."""
        return self.epoch + (self._num_epoch_rows is not None and not self._buffer)

    def next(self) -> RawRecord:
        """The next record.

        Raises:
            DataError: no source has a record, a shard cannot be read, or the buffer takes more than its memory.
        """
        self._fill()
        if not self._buffer:
            if not self._num_read:
                raise no_rows(self._lanes[0].names)
            self._begin(self.epoch + 1, (LanePlace(pass_number=self.epoch + 1),), 0)
            self._fill()
        place = self._words.at(self._num_draws) % len(self._buffer)
        _, record = self._buffer[place]
        self._held_bytes -= record.memory_bytes
        following = self._read()
        if following is None:
            self._buffer[place] = self._buffer[-1]
            self._buffer.pop()
        else:
            self._buffer[place] = (self._num_read - 1, following)
            self._hold(following)
        self._num_draws += 1
        return record

    def _fill(self) -> None:
        while len(self._buffer) < self._size and (record := self._read()) is not None:
            self._buffer.append((self._num_read - 1, record))
            self._hold(record)

    def _read(self) -> RawRecord | None:
        """The next record of the sources; None once the epoch has no more."""
        if self._num_epoch_rows is not None:
            return None
        if self._num_read - self._marks[-1][0] >= _ROWS_A_MARK:
            self._marks.append((self._num_read, self._lane_positions()))
        if self._choice is not None:
            record: RawRecord | None = self._lanes[self._choice.at(self._num_read)].next_again()
        else:
            record = self._lanes[0].next()
        if record is None:
            self._num_epoch_rows = self._num_read
        else:
            self._num_read += 1
        return record

    def _hold(self, record: RawRecord) -> None:
        self._held_bytes += record.memory_bytes
        if self._held_bytes <= self._memory_bytes:
            return
        size, most = record.memory_bytes / _MIB, self._memory_bytes / _MIB
        if record.memory_bytes > self._memory_bytes:
            raise DataError(
                f"a row of {record.file} takes {size:,.1f} MiB in memory, more than the shuffle buffer may",
                expected=f"rows of at most {most:,.1f} MiB (LUTHIER_DATA_MEMORY_BYTES, else a quarter of the free "
                "memory)",
                do="take the row out, or raise LUTHIER_DATA_MEMORY_BYTES and resume the run",
            )
        raise DataError(
            f"{len(self._buffer):,} rows of the shuffle buffer of {self._size:,} take more than {most:,.1f} MiB",
            expected="a buffer within LUTHIER_DATA_MEMORY_BYTES, else a quarter of the free memory",
            do="raise LUTHIER_DATA_MEMORY_BYTES and resume the run, or start one with a smaller data.shuffle_buffer",
        )

    def _lane_positions(self) -> tuple[LanePlace, ...]:
        return tuple(lane.place for lane in self._lanes)

    def position(self) -> StreamPosition:
        """Where it is, to be given to `restore`; without window and counts."""
        oldest = min((number for number, _ in self._buffer), default=self._num_read)
        # The last mark at or before the oldest record; those before it are not needed any more.
        while len(self._marks) > 1 and self._marks[1][0] <= oldest:
            self._marks.pop(0)
        refill_read, refill_lanes = self._marks[0]
        return StreamPosition(
            epoch=self.epoch,
            num_draws=self._num_draws,
            num_read=self._num_read,
            num_epoch_rows=self._num_epoch_rows,
            lanes=self._lane_positions(),
            refill_read=refill_read,
            refill_lanes=refill_lanes,
        )

    def restore(self, position: StreamPosition) -> None:
        """Go on from a position: fill the buffer with the records that were in it.

        Raises:
            DataError: the shards are not those that the position was recorded in.
        """
        slots = buffered_after(
            position.num_draws, self._size, draws_of(self._seed, position.epoch), position.num_epoch_rows
        )
        if not position.num_read:
            self._begin(position.epoch, position.lanes, 0)
            self._count_from(position.counts)
            return
        self._begin(position.epoch, position.refill_lanes, position.refill_read)
        wanted, kept = set(slots), dict[int, RawRecord]()
        while self._num_read < position.num_read:
            record = self._read()
            if record is None:
                break
            if self._num_read - 1 in wanted:
                kept[self._num_read - 1] = record
        if self._num_read != position.num_read or wanted - kept.keys():
            raise changed_while_read(self._lanes[0].names)
        for lane, place in zip(self._lanes, position.lanes, strict=True):
            if lane.place != place:
                if position.num_epoch_rows is None:
                    raise changed_while_read(lane.names)
                lane.begin(place)  # at its end, behind shards without a record
        self._num_draws, self._num_epoch_rows = position.num_draws, position.num_epoch_rows
        for number in slots:
            self._buffer.append((number, kept[number]))
            self._hold(kept[number])
        self._count_from(position.counts)

    def _count_from(self, before: StreamCounts) -> None:
        # What was met while the buffer was filled again is counted in the position already.
        self._num_empty_before, self._short_before = before.num_empty_shards, set(before.short_sources)
        for lane in self._lanes:
            lane.num_empty = 0

    def close(self) -> None:
        """Let go of the files that are open."""
        for lane in self._lanes:
            lane.close()
