"""Lines of a file with a limit on their length, so that one line of 2 GB costs no 2 GB of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

MAX_LINE_BYTES = 64 * 2**20
_HEAD_BYTES = 2**16


def bounded_lines(file: IO[bytes], limit: int = MAX_LINE_BYTES) -> Iterator[tuple[bytes, int]]:
    """Each line with its end, and its length in bytes; of a line over `limit` only the first 64 KiB.

    So a line was cut exactly where the length is greater than that of the bytes given.
    """
    while piece := file.readline(limit + 1):
        if len(piece) <= limit:
            yield piece, len(piece)
            continue
        head, length = piece[:_HEAD_BYTES], len(piece)
        while not piece.endswith(b"\n") and (piece := file.readline(_HEAD_BYTES)):
            length += len(piece)
        yield head, length


def too_long(length: int, limit: int = MAX_LINE_BYTES) -> str:
    """What is wrong with a line of `length` bytes, as the reason of a RowProblem."""
    return f"is a line of {length:,} bytes, more than the {limit:,} that one row may have"
