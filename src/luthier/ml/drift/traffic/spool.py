"""Where exchanges are written first: lines of JSON, appended by all processes of this machine to one open segment.

    open-ID.jsonl     is being appended to
    ID.jsonl          sealed: nothing more comes, it waits to become Parquet

A lock lets one at a time append or seal, and the kernel releases it when its holder dies. What a kill has cut off is
one line, the last; the next writer begins a new one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.ids import is_id, new_id
from luthier.core.system.file_lock import file_lock

KIND: Final = "traffic"
_OPEN: Final = "open-"
_LOCK_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Segment:
    """Lines as they were at one moment.

    Attributes:
        segment_id: the same while it is open and once it is sealed.
    """

    segment_id: str
    data: bytes


class Spool:
    """The segments in a folder, which is made when something is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(self, lines: Sequence[bytes]) -> int:
        """Write lines, all or none of them; returns the bytes of the open segment. Raises OSError, ConflictError."""
        with self._locked():  # under the lock no other process seals the segment or ends a line in between
            path = self._open_path() or self._folder / f"{_OPEN}{new_id(KIND)}.jsonl"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                data = memoryview(b"\n" * is_cut + b"".join(lines))
                try:
                    written = 0
                    # A write may take less than it was given: a nearly full disk, a signal.
                    while written < len(data):
                        written += os.pwrite(descriptor, data[written:], size + written)
                except OSError:
                    # All or none: the caller counts all of them as lost.
                    os.ftruncate(descriptor, size)
                    raise
                return size + len(data)
            finally:
                os.close(descriptor)

    def seal(self) -> None:
        """Let nothing more come to the open segment."""
        # Looked at without the lock first, since most calls find nothing to seal; then again under it.
        if self._open_path() is not None:
            with self._locked():
                if (path := self._open_path()) is not None:
                    path.rename(path.with_name(path.name.removeprefix(_OPEN)))

    def sealed(self) -> list[Path]:
        """The segments to which nothing more comes, oldest first."""
        return [path for path in self._paths() if not path.name.startswith(_OPEN)]

    def segments(self) -> list[Segment]:
        """All lines that are here now. Call `holds` afterwards to know whether it has become Parquet meanwhile."""
        if not self._folder.is_dir():
            return []
        with contextlib.ExitStack() as stack:
            with self._locked():
                files = [(segment_id_of(path), stack.enter_context(path.open("rb"))) for path in self._paths()]
                sizes = [os.fstat(file.fileno()).st_size for _, file in files]
            # Without the lock: lines appended since lie beyond these sizes, and a renamed file stays readable.
            return [Segment(name, file.read(size)) for (name, file), size in zip(files, sizes, strict=True)]

    def holds(self, segments: Sequence[Segment]) -> bool:
        """Whether all of these are still here."""
        here = {segment_id_of(path) for path in self._paths()}
        return all(segment.segment_id in here for segment in segments)

    def _paths(self) -> list[Path]:
        found = self._folder.glob("*.jsonl")
        return sorted((path for path in found if is_id(segment_id_of(path), KIND)), key=segment_id_of)

    def _open_path(self) -> Path | None:
        return next((path for path in self._paths() if path.name.startswith(_OPEN)), None)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with file_lock(self._folder / "lock", what="the spool of exchanges", timeout_seconds=_LOCK_SECONDS):
            yield


def segment_id_of(path: Path) -> str:
    """The id of a segment, open or sealed, by its path."""
    return path.name.removeprefix(_OPEN).removesuffix(".jsonl")
