"""The encoding of a text file, decided from all of its bytes, and its bytes as UTF-8.

UTF-8 wherever the bytes allow it. UTF-16 and UTF-32 by their byte order mark, UTF-16 also by NUL in every second byte.
Windows-1252 where no line with letters beyond ASCII is UTF-8, every byte has a meaning there, and the letters stand as
they do in Western languages. A file that mixes encodings stays UTF-8: its reader names the lines that are not.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO, Final, Literal

from luthier.core.errors import DataError
from luthier.ml.data.files.bounded_lines import bounded_lines

Encoding = Literal["utf-8", "cp1252", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
Open = Callable[[], AbstractContextManager[IO[bytes]]]

NAMES: Final[dict[Encoding, str]] = {
    "utf-8": "UTF-8",
    "cp1252": "Windows-1252",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "utf-32-le": "UTF-32",
    "utf-32-be": "UTF-32",
}
_MARKS: Final[tuple[tuple[bytes, Encoding], ...]] = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BLOCK_BYTES: Final = 1 << 20
_HEAD_BYTES: Final = 65_536
_NUL_FRACTION: Final = 0.4
_UNDEFINED: Final = bytes((0x81, 0x8D, 0x8F, 0x90, 0x9D))  # have no meaning in Windows-1252
_LETTERS: Final = re.compile(rb"[\xc0-\xff]+")
_LONG_RUN: Final = 3
"""So many letters beyond ASCII in a row are rare in Western languages, and usual in Cyrillic, Greek or Asian text."""


def wide_encoding(head: bytes) -> Encoding | None:
    """UTF-16 or UTF-32 where the first bytes of a file show it, else None."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    even, odd = head[0::2].count(0), head[1::2].count(0)
    # NULs on one side only: binary data has them on both.
    if max(even, odd) * 2 > _NUL_FRACTION * len(head) and min(even, odd) * 10 < max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def encoding_of(open_file: Open) -> Encoding:
    """The encoding of a file. Reads all of it where it is not UTF-16 or UTF-32, with memory for one line."""
    # Incremental, so that a character across two blocks is no error.
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_file() as file:
        head = file.read(_HEAD_BYTES)
        if (wide := wide_encoding(head)) is not None:
            return wide
        try:
            block = head
            while block:
                decoder.decode(block)
                block = file.read(_BLOCK_BYTES)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8"
    return "cp1252" if _is_windows_1252(open_file) else "utf-8"


def _is_windows_1252(open_file: Open) -> bool:
    num_letters = num_in_runs = 0
    with open_file() as file:
        for line, _ in bounded_lines(file):
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                pass
            else:
                return False  # some lines are UTF-8: the file mixes encodings
            if len(line.translate(None, _UNDEFINED)) < len(line):
                return False
            for run in _LETTERS.findall(line):
                num_letters += len(run)
                num_in_runs += len(run) if len(run) >= _LONG_RUN else 0
    # Long runs of high letters in most of the text mean another alphabet, which Windows-1252 would garble.
    return num_in_runs * 2 <= num_letters


class Utf8Bytes(io.RawIOBase):
    """The bytes of a file in another encoding as UTF-8, without the byte order mark; to be read in order.

    Args:
        file: the bytes.
        name: of the file, for messages.
        encoding: of the bytes.
        bare_returns: lines end in a carriage return alone, which becomes a line feed.

    Raises:
        DataError: while it is read, for bytes that break the encoding; names their line and offset.
    """

    def __init__(self, file: IO[bytes], name: str, encoding: Encoding, *, bare_returns: bool = False) -> None:
        self._file, self._name, self._encoding = file, name, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._bare_returns = bare_returns
        self._ready = b""
        self._num_bytes, self._num_lines, self._is_first = 0, 0, True

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill a buffer as `io.RawIOBase` asks."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        # A block may decode to nothing (the mark, or half of a character): 0 would mean the end of the file.
        while not self._ready:
            block = self._file.read(_BLOCK_BYTES)
            self._ready = self._recoded(block)
            if not block:
                break
        part, self._ready = self._ready[: len(view)], self._ready[len(view) :]
        view[: len(part)] = part
        return len(part)

    def _recoded(self, block: bytes) -> bytes:
        # Bytes of an unfinished character from the block before: the error's offset counts from them.
        held: bytes = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(self._encoding, "replace").count("\n")
            line = self._num_lines + before + 1
            raise DataError(
                f"{self._name} breaks its encoding {NAMES[self._encoding]} on line {line} "
                f"(byte {self._num_bytes - len(held) + error.start}): {error.reason}",
                expected=f"{NAMES[self._encoding]} up to the end, as the file begins",
                do="save it again as UTF-8; a file that was cut short must be copied again",
            ) from error
        self._num_bytes += len(block)
        if self._is_first and text:
            text, self._is_first = text.removeprefix("\ufeff"), False
        if self._bare_returns:
            text = text.replace("\r", "\n")
        self._num_lines += text.count("\n")
        return text.encode("utf-8")


def as_utf8(file: IO[bytes], name: str, encoding: Encoding, *, bare_returns: bool = False) -> IO[bytes]:
    """The file itself where it is UTF-8 with usual line ends, else its bytes as UTF-8 (`Utf8Bytes`)."""
    if encoding == "utf-8" and not bare_returns:
        return file
    return io.BufferedReader(Utf8Bytes(file, name, encoding, bare_returns=bare_returns))
