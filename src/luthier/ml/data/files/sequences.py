"""Sequences of records larger than memory: tuples up to a budget, in files beyond it, and views that copy nothing.

A `SequenceWriter` collects records. As long as the budget of its `Spill` allows it returns a tuple; beyond that the
records are encoded into arrays that go to files (`files.spill.Spool`), and one is decoded each time it is asked for.
The views (`Selected`, `Changed`, `Chained`) keep positions alone, 8 bytes a record.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Final, Generic, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from luthier.ml.data.files.spill import Spill, Spool

T = TypeVar("T")
I64 = npt.NDArray[np.int64]

_BLOCK_RECORDS: Final = 1000
"""So many records are encoded, written and read at a time."""


class LazySequence(Sequence[T]):
    """A sequence whose items are made when they are asked for; slices are lists."""

    @abstractmethod
    def _at(self, start: int, stop: int) -> Sequence[T]:
        """The items from `start` to below `stop`, both within the sequence."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return list(self._at(start, max(start, stop)))
            return [self[place] for place in range(start, stop, step)]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"index {index} of a sequence of {len(self):,}")
        return self._at(place, place + 1)[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _BLOCK_RECORDS):
            yield from self._at(start, min(len(self), start + _BLOCK_RECORDS))


class Selected(LazySequence[T]):
    """Some items of another sequence.

    Attributes:
        items: the sequence.
        positions: int64 [n], which of its items, in the order wanted.
    """

    def __init__(self, items: Sequence[T], positions: I64) -> None:
        self.items, self.positions = items, positions

    def __len__(self) -> int:
        return len(self.positions)

    def _at(self, start: int, stop: int) -> list[T]:
        # Neighbours in the view are often neighbours in the file; a list comparison costs less than a read for each.
        places = self.positions[start:stop].tolist()
        if len(places) > 1 and places == list(range(places[0], places[-1] + 1)):
            return list(self.items[places[0] : places[-1] + 1])  # one read for all of them
        return [self.items[place] for place in places]


class Changed(LazySequence[T]):
    """The items of another sequence, each changed when it is made.

    Attributes:
        items: the sequence.
        change: position and item -> item.
    """

    def __init__(self, items: Sequence[T], change: Callable[[int, T], T]) -> None:
        self.items, self.change = items, change

    def __len__(self) -> int:
        return len(self.items)

    def _at(self, start: int, stop: int) -> list[T]:
        return [self.change(place, item) for place, item in enumerate(self.items[start:stop], start)]


class Chained(LazySequence[T]):
    """Several sequences, one after another."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _at(self, start: int, stop: int) -> list[T]:
        found: list[T] = []
        for number in range(bisect_right(self._ends, start), len(self._parts)):
            begin = self._ends[number - 1] if number else 0
            if begin >= stop:
                break
            found.extend(self._parts[number][max(0, start - begin) : stop - begin])
        return found


def chained(*parts: Sequence[T]) -> Sequence[T]:
    """Several sequences as one: a list, or a view where one of them is larger than memory."""
    filled = [part for part in parts if len(part)]
    if any(isinstance(part, LazySequence) for part in filled):
        return filled[0] if len(filled) == 1 else Chained(*filled)
    return list(chain.from_iterable(filled))


def selected(items: Sequence[T], positions: I64) -> Sequence[T]:
    """Some items of a sequence: a list, or a view where the sequence is larger than memory.

    Args:
        items: the sequence.
        positions: int64 [n], which of its items.
    """
    if isinstance(items, LazySequence):
        return Selected(items, positions)
    return [items[place] for place in positions.tolist()]


def changed(items: Sequence[T], change: Callable[[int, T], T]) -> Sequence[T]:
    """The items, each changed: a tuple, or a view where the sequence is larger than memory.

    Args:
        items: the sequence.
        change: position and item -> item.
    """
    if isinstance(items, LazySequence):
        return Changed(items, change)
    return tuple(change(place, item) for place, item in enumerate(items))


class Store(Protocol[T]):
    """Where records go that are beyond the budget."""

    def extend(self, records: Sequence[T]) -> None:
        """Add some hundred records."""
        ...

    def sequence(self) -> Sequence[T]:
        """All of them. Nothing can be added afterwards."""
        ...


class SequenceWriter(Generic[T]):
    """Collects records: a tuple as long as the budget allows, beyond it a store.

    Args:
        spill: the budget, and where files go; None keeps everything in memory.
        memory_bytes: record -> about the bytes that it takes in memory.
        new_store: makes the store when the budget is used up.
    """

    def __init__(
        self, spill: Spill | None, memory_bytes: Callable[[T], int], new_store: Callable[[Spill], Store[T]]
    ) -> None:
        self._spill, self._memory_bytes, self._new_store = spill, memory_bytes, new_store
        self._records: list[T] = []
        self._held = 0
        self._store: Store[T] | None = None

    def append(self, record: T) -> None:
        """Add one.

        Raises:
            StorageFullError: the disk is full, or has too little room.
        """
        self._records.append(record)
        if self._spill is None:
            return
        if self._store is not None:
            if len(self._records) == _BLOCK_RECORDS:
                self._store.extend(self._records)
                self._records = []
            return
        size = self._memory_bytes(record)
        if self._spill.hold(size):
            self._held += size
            return
        self._store = self._new_store(self._spill)
        for start in range(0, len(self._records), _BLOCK_RECORDS):
            self._store.extend(self._records[start : start + _BLOCK_RECORDS])
        self._records = []
        self._spill.release(self._held)

    def sequence(self) -> Sequence[T]:
        """All records. Nothing can be added afterwards."""
        if self._store is None:
            return tuple(self._records)
        if self._records:
            self._store.extend(self._records)
        return self._store.sequence()


class StoredRecords(LazySequence[T]):
    """Records as bytes, one after another.

    Args:
        data: uint8, all of them.
        ends: int64 [n], where each of them ends.
        decode: bytes -> record.
    """

    def __init__(self, data: npt.NDArray[np.uint8], ends: I64, decode: Callable[[bytes], T]) -> None:
        self._data, self._ends, self._decode = data, ends, decode

    def __len__(self) -> int:
        return len(self._ends)

    def _at(self, start: int, stop: int) -> list[T]:
        if start >= stop:
            return []
        begin = int(self._ends[start - 1]) if start else 0
        ends = self._ends[start:stop].tolist()
        data = self._data[begin : ends[-1]].tobytes()
        return [
            self._decode(data[one - begin : other - begin])
            for one, other in zip([begin, *ends[:-1]], ends, strict=True)
        ]


class RecordStore(Generic[T]):
    """Records as bytes in a spool.

    Args:
        spill: the budget, and where files go.
        encode: record -> bytes.
        decode: bytes -> an equal record.
    """

    def __init__(self, spill: Spill, encode: Callable[[T], bytes], decode: Callable[[bytes], T]) -> None:
        self._data, self._ends = Spool(spill, np.uint8), Spool(spill, np.int64)
        self._encode, self._decode = encode, decode
        self._num_bytes = 0

    def extend(self, records: Sequence[T]) -> None:
        """Add some."""
        encoded = [self._encode(record) for record in records]
        ends = self._num_bytes + np.cumsum([len(one) for one in encoded], dtype=np.int64)
        self._num_bytes = int(ends[-1])
        self._data.append(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        self._ends.append(ends)

    def sequence(self) -> StoredRecords[T]:
        """All of them."""
        return StoredRecords(self._data.array(), self._ends.array(), self._decode)
