"""Gzip data (RFC 1952) as a stream with a bound on what it unpacks to: 1 MB may hold 1 GB of the same byte."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from luthier.core.errors import DataError
from luthier.ml.data.files.archive_safety import MAX_RATIO, RATIO_FROM_BYTES

MAX_UNPACKED_BYTES: Final = 8 << 30
"""As much as one file of a project may have by default."""
_USUAL_RATIO: Final = 20
_BUFFER_BYTES: Final = 1 << 20


def max_unpacked_bytes(num_packed: int) -> int:
    """What so many packed bytes may unpack to: 10 MiB always, then 200 to 1 up to 8 GiB, and 20 to 1 beyond."""
    most = max(MAX_UNPACKED_BYTES, _USUAL_RATIO * num_packed)
    return max(RATIO_FROM_BYTES, min(MAX_RATIO * num_packed, most))


def bomb(name: str, num_packed: int, limit: int) -> DataError:
    """The error for a file that unpacks to more than it may."""
    return DataError(
        f"{name} looks like a decompression bomb: its {num_packed:,} bytes unpack to more than {limit:,}",
        expected=f"at most {limit:,} bytes of so many packed ones ({MAX_RATIO} to 1, and 8 GiB)",
        do="check where it came from; if its rows are right, unpack it first and give the unpacked file",
    )


@contextmanager
def open_gzip(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes, in constant memory.

    Raises:
        DataError: while it is read, past the bound.
        gzip.BadGzipFile: the data are no gzip; EOFError where they end early, zlib.error where they are damaged.
    """
    with gzip.open(path, "rb") as unpacked:
        raw = _Counted(cast("IO[bytes]", unpacked), path.name, path.stat().st_size)
        with io.BufferedReader(raw, _BUFFER_BYTES) as file:
            yield file


class _Counted(io.RawIOBase):
    """Counts what is unpacked, before whoever reads it keeps any of it."""

    def __init__(self, file: IO[bytes], name: str, num_packed: int) -> None:
        self._file, self._name, self._num_packed = file, name, num_packed
        self._limit, self._num_bytes = max_unpacked_bytes(num_packed), 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end. Raises DataError past the bound."""
        data = self._file.read(len(buffer))
        self._num_bytes += len(data)
        # Before the bytes are handed on: at most one buffer more than the limit is ever in memory.
        if self._num_bytes > self._limit:
            raise bomb(self._name, self._num_packed, self._limit)
        buffer[: len(data)] = data
        return len(data)
