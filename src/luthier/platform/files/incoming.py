"""A file that is just coming in: written to disk and hashed piece by piece, never whole in memory."""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from luthier.core.errors import StorageFullError
from luthier.core.system.disk_full import is_disk_full
from luthier.core.system.durable import sync_file

STALE_SECONDS: Final = 24 * 3600.0
"""How long a partial file that nobody writes to is left alone: longer than any transfer pauses."""


class IncomingFile:
    """A partial file in a folder (made where it is missing); gone when the `with` block ends, unless it was moved away.

    Raises StorageFullError, from `write` and `finish`, where no room is left.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid.uuid4().hex}.partial"
        # Unbuffered: pieces are large already, and a full disk shows at the write and not at the close.
        self._file = self.path.open("xb", buffering=0)
        self._sha256, self.num_bytes = hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with _disk_full_explained(self.path):
            rest = memoryview(data)
            while rest:
                # A raw file may take only a part of what it is given.
                rest = rest[self._file.write(rest) or 0 :]
        self._sha256.update(data)
        self.num_bytes += len(data)

    def finish(self) -> str:
        """Bring all of it to the disk and close it; returns its SHA-256 in hexadecimal digits."""
        with _disk_full_explained(self.path):
            # Before the database names the file: after a power cut a row must not point to an empty one.
            sync_file(self._file)
            self._file.close()
        return self._sha256.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def sweep_incoming(folder: Path) -> None:
    """Remove partial files that a process which died has left behind."""
    oldest = time.time() - STALE_SECONDS
    for path in folder.glob("*.partial"):
        with contextlib.suppress(OSError):  # another process may sweep the same folder
            if path.stat().st_mtime < oldest:
                path.unlink()


@contextlib.contextmanager
def _disk_full_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StorageFullError(
            f"no room for a file in {path.parent}: {error.strerror}",
            expected="free space for the file that came in",
            do="free some disk space, then send it again",
        ) from error
