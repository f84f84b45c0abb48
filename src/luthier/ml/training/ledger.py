"""What a run has spent, on disk, so that kill -9 cannot make it forget.

    spent.jsonl     one line before each action: all that is settled, and what the action that begins now should take

A line is appended by one write, which a kill leaves whole or not there; a power cut can tear the last one, which then
is not read. Checkpoints do not contain it: what is trained never depends on its cost.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from luthier.core.budget import Spent
from luthier.core.errors import StorageFullError
from luthier.core.frozen_model import FrozenModel
from luthier.core.system.disk_full import is_disk_full
from luthier.core.system.durable import sync_file
from luthier.ml.training.throughput import Action, Throughput

LEDGER: Final = "spent.jsonl"
_MAX_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 1 << 14

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Entry(FrozenModel):
    """One line of the ledger.

    Attributes:
        seconds, tokens: settled so far.
        interrupted_seconds: of these, the time of actions that were cut short.
        doing: the action that began when the line was written; None after the last.
        expected_seconds, expected_tokens: what that action should take.
        pace: the throughput measured so far.
    """

    seconds: _Amount = 0.0
    tokens: Annotated[int, Field(ge=0)] = 0
    interrupted_seconds: _Amount = 0.0
    doing: Action | None = None
    expected_seconds: _Amount = 0.0
    expected_tokens: Annotated[int, Field(ge=0)] = 0
    pace: Throughput = Throughput()

    def settled(self) -> Spent:
        """What is spent if this line is the last one found: an action under way counts as expected."""
        lost = self.expected_seconds if self.doing else 0.0
        return Spent(
            seconds=self.seconds + lost,
            tokens=self.tokens + (self.expected_tokens if self.doing else 0),
            interrupted_seconds=self.interrupted_seconds + lost,
        )


class Ledger:
    """The ledger of one run. Only the process that holds the run's lock may write.

    Args:
        folder: of the run; None keeps nothing on disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / LEDGER
        self._descriptor: int | None = None

    @property
    def is_persistent(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def last(self) -> Entry:
        """The newest line that can be read; an empty entry where there is none."""
        if self._file is None or not self._file.is_file():
            return Entry()
        with self._file.open("rb") as file:
            # The tail holds many lines; one that is torn or cut by the seek does not parse and is passed over.
            file.seek(max(0, self._file.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
        for line in reversed(lines):
            try:
                return Entry.model_validate_json(line)
            except ValidationError:
                continue
        return Entry()

    def append(self, entry: Entry) -> None:
        """Write one line.

        Raises:
            StorageFullError: the disk has no room.
        """
        if self._file is None:
            return
        try:
            if self._descriptor is None:
                self._descriptor = self._open(self._file)
            line = entry.model_dump_json().encode() + b"\n"
            # A short write to a regular file means a full disk.
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise StorageFullError(
                f"no room to note in {self._file} what the run has spent",
                expected="a few hundred bytes",
                do="free some disk space and resume the run",
            ) from error

    def sync(self) -> None:
        """Have all lines on the disk itself."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Sync and close the file."""
        if self._descriptor is not None:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self, file: Path) -> int:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.stat().st_size > _MAX_BYTES:
            self._shorten(file)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")  # what a power cut tore must not spoil the next line
        return descriptor

    def _shorten(self, file: Path) -> None:
        """Only the newest line is ever read: keep that one."""
        partial = file.with_name(f".{file.name}")
        with partial.open("wb") as writer:
            writer.write(self.last().model_dump_json().encode() + b"\n")
            sync_file(writer)
        partial.replace(file)
