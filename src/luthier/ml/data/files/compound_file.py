"""Compound files: the container of Outlook messages and of Office documents before 2007 (MS-CFB).

A file system in a file: storages hold streams, streams are chains of sectors that an allocation table links. All
numbers come from an untrusted file, so each chain is bounded by the number of sectors that the file has.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from luthier.core.errors import DataError

SIGNATURE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
MAX_FILE_BYTES: Final = 2**30
_LAST_SECTOR: Final = 0xFFFFFFFA
"""The largest number of a sector; what is above means the end of a chain, a free sector, or one of the table."""
_NO_ENTRY: Final = 0xFFFFFFFF
_HEADER_BYTES: Final = 512
_ENTRY_BYTES: Final = 128
_STORAGE, _STREAM, _ROOT = 1, 2, 5
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder of a compound file.

    Attributes:
        streams: what reads the content of each, by name; parts that nobody needs may be damaged.
        storages: folders in it by name, in the order of the file.
    """

    streams: Mapping[str, Callable[[], bytes]]
    storages: Mapping[str, Storage]

    def __contains__(self, name: str) -> bool:
        """Whether there is a stream of a name, in any case of letters (MS-CFB 2.6.4)."""
        return self._written(name) is not None

    def read(self, name: str) -> bytes | None:
        """The content of a stream; None where there is none of the name.

        Raises:
            DataError: it is damaged.
        """
        return None if (written := self._written(name)) is None else _checked(self.streams[written])

    def _written(self, name: str) -> str | None:
        if name in self.streams:
            return name
        return next((one for one in self.streams if one.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A directory entry (MS-CFB 2.6.1)."""

    name: str
    kind: int
    left: int
    right: int
    child: int
    start: int
    size: int


def read_compound_file(path: Path) -> Storage:
    """The root storage of a compound file, with all that is in it.

    Args:
        path: the file, of at most `MAX_FILE_BYTES`.

    Raises:
        DataError: it is no compound file, damaged, or too large.
    """
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise DataError(
            f"it has {size / 1e9:.1f} GB",
            expected=f"a document of at most {MAX_FILE_BYTES / 1e9:.1f} GB",
            do="divide it into smaller files",
        )
    data = path.read_bytes()
    if not data.startswith(SIGNATURE) or len(data) < _HEADER_BYTES:
        raise DataError(
            "it is no compound file", expected="an Outlook message or a document of Office 97 to 2003", do="check it"
        )
    return _checked(lambda: _Reader(data).root())


def _checked(read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (struct.error, ValueError, RecursionError) as error:
        raise DataError(
            f"it is damaged: {error}",
            expected="a whole file",
            do="copy it again, or open it in the program that made it and save it again",
        ) from error


class _Reader:
    """Sectors, allocation tables and the directory of one file."""

    def __init__(self, data: bytes) -> None:
        version, _, shift, mini_shift = struct.unpack_from("<HHHH", data, 26)
        if version not in (3, 4) or shift not in (9, 12) or mini_shift != 6:
            raise ValueError(f"version {version} with sectors of 2^{shift} bytes is not known")
        self._data, self._size, self._mini_size = data, 1 << shift, 1 << mini_shift
        self._num_sectors = len(data) // self._size
        first_directory, _, self._cutoff, first_mini, _, first_difat, _ = struct.unpack_from("<7I", data, 48)
        self._table = self._allocation_table(first_difat)
        self._entries = list(self._directory(first_directory))
        if not self._entries or self._entries[0].kind != _ROOT:
            raise ValueError("its directory has no root")
        self._mini_table = _numbers(self._chain(first_mini))
        self._mini_stream = self._chain(self._entries[0].start)[: self._entries[0].size]

    def root(self) -> Storage:
        """All storages and streams, by a walk of the directory."""
        return self._storage(0, set())

    def _sector(self, number: int) -> bytes:
        begin = (number + 1) * self._size
        sector = self._data[begin : begin + self._size]
        if not sector:
            raise ValueError(f"it ends before sector {number:,}")
        return sector  # the last one of a file may be cut short by programs that write no padding

    def _allocation_table(self, first_difat: int) -> tuple[int, ...]:
        places = [number for number in struct.unpack_from("<109I", self._data, 76) if number <= _LAST_SECTOR]
        seen = set[int]()
        while first_difat <= _LAST_SECTOR:
            if first_difat in seen:
                raise ValueError("its table of sectors is a circle")
            seen.add(first_difat)
            *more, first_difat = _numbers(self._sector(first_difat))
            places += [number for number in more if number <= _LAST_SECTOR]
        return _numbers(b"".join(map(self._sector, places)))

    def _chain(self, start: int) -> bytes:
        found, number = list[bytes](), start
        while number <= _LAST_SECTOR:
            if len(found) > self._num_sectors:
                raise ValueError("a chain of its sectors is a circle")
            found.append(self._sector(number))
            number = _next(self._table, number)
        return b"".join(found)

    def _mini_chain(self, start: int) -> bytes:
        found, number = list[bytes](), start
        while number <= _LAST_SECTOR:
            if len(found) > len(self._mini_table):
                raise ValueError("a chain of its small sectors is a circle")
            found.append(self._mini_stream[number * self._mini_size : (number + 1) * self._mini_size])
            number = _next(self._mini_table, number)
        return b"".join(found)

    def _directory(self, start: int) -> Iterator[_Entry]:
        data = self._chain(start)
        for begin in range(0, len(data) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
            name, length, kind, _, left, right, child = struct.unpack_from("<64sHBBIII", data, begin)
            first, size = struct.unpack_from("<IQ", data, begin + 116)
            # Version 3 has sizes of 32 bits; what some programs leave in the upper half means nothing.
            size = size & 0xFFFFFFFF if self._size == 512 else size
            text = name[: max(0, min(length, 64) - 2)].decode("utf-16-le", "replace")
            yield _Entry(text, kind, left, right, child, first, size)

    def _storage(self, place: int, seen: set[int]) -> Storage:
        streams, storages = dict[str, Callable[[], bytes]](), dict[str, Storage]()
        for number in sorted(self._siblings(self._entries[place].child, seen)):
            entry = self._entries[number]
            if entry.kind == _STORAGE:
                storages[entry.name] = self._storage(number, seen)
            elif entry.kind == _STREAM:
                streams[entry.name] = partial(self._stream, entry)
        return Storage(streams, storages)

    def _siblings(self, first: int, seen: set[int]) -> list[int]:
        """The entries of one storage: a binary tree, walked without recursion, since its depth is the file's to say."""
        found, waiting = list[int](), [first]
        while waiting:
            number = waiting.pop()
            if number == _NO_ENTRY:
                continue
            if number in seen or number >= len(self._entries):
                raise ValueError("its directory is a circle")
            seen.add(number)
            found.append(number)
            waiting += [self._entries[number].left, self._entries[number].right]
        return found

    def _stream(self, entry: _Entry) -> bytes:
        data = self._mini_chain(entry.start) if entry.size < self._cutoff else self._chain(entry.start)
        if len(data) < entry.size:
            raise ValueError(f"its part {entry.name!r} has {len(data):,} of {entry.size:,} bytes")
        return data[: entry.size]


def _next(table: tuple[int, ...], number: int) -> int:
    if number >= len(table):
        raise ValueError(f"its table of sectors has no entry {number:,}")
    return table[number]


def _numbers(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])
