"""Working data larger than memory: a budget of bytes, and a scratch folder for all that exceeds it.

What works on millions of rows keeps its tables and arrays in memory as long as the budget allows, and in files beyond
that; the values are the same either way. The files are in a separate folder, which is deleted with its `Spill`; what a
killed process has left is removed when the next one spills into the same place (`core.system.files.scratch_folder`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from luthier.core.errors import StorageFullError
from luthier.core.system.files import disk_full_explained, scratch_folder
from luthier.core.system.machine_memory import memory_bytes
from luthier.core.text.byte_sizes import size

MEMORY_SHARE: Final = 0.25
"""Of the available memory: the rest is for what is computed from the rows, and for others on the machine."""

_PREFIX: Final = "luthier-spill-"
_RESERVE_BYTES: Final = 256 << 20


def default_folder() -> Path:
    """Where files go by default: TMPDIR, else /var/tmp, which unlike /tmp is on a disk on every usual system."""
    if os.environ.get("TMPDIR"):
        return Path(tempfile.gettempdir())
    lasting = Path("/var/tmp")  # noqa: S108 - files are in a folder of this user alone, of a random name
    return lasting if os.access(lasting, os.W_OK) else Path(tempfile.gettempdir())


class Spill:
    """A budget of memory that several containers share, and the folder for what exceeds it.

    Args:
        memory_bytes: what all containers together may hold in memory; None takes a quarter of what is available now.
        folder: where the scratch folder is made when it is first needed; None for `default_folder`.
    """

    def __init__(self, memory_bytes: int | None = None, folder: Path | None = None) -> None:
        self.memory_bytes = _default_budget() if memory_bytes is None else memory_bytes
        self.place = folder or default_folder()
        self.written_bytes = 0
        self._held = self._num_files = self._foreseen = 0
        self._folder: Path | None = None
        self._stack = ExitStack()
        # Also runs at the end of the process. The stack has no reference to this object, so that it can be collected.
        weakref.finalize(self, self._stack.close)

    @property
    def held_bytes(self) -> int:
        """What containers hold in memory."""
        return self._held

    def hold(self, num_bytes: int) -> bool:
        """Take this much of the budget; False where it is not there, and the caller writes to a file."""
        if self._held + num_bytes > self.memory_bytes:
            return False
        self._held += num_bytes
        return True

    def release(self, num_bytes: int) -> None:
        """Give back what `hold` has taken."""
        self._held -= num_bytes

    def new_file(self) -> Path:
        """The path of a file that is not there yet.

        Raises:
            StorageFullError: there is no room for the folder.
        """
        if self._folder is None:
            with disk_full_explained(self.place):
                self.place.mkdir(parents=True, exist_ok=True)
                self._folder = self._stack.enter_context(scratch_folder(self.place, _PREFIX))
        self._num_files += 1
        return self._folder / str(self._num_files)

    def check_room(self, num_bytes: float) -> None:
        """Refuse to begin what the disk has no room for, in addition to the files that have begun and are not complete.

        Args:
            num_bytes: the expected number of bytes to write.

        Raises:
            StorageFullError: there is less room, or hardly more.
        """
        self.place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.place).free
        self._foreseen += int(num_bytes)
        still = max(int(num_bytes), self._foreseen - self.written_bytes)
        if still + _RESERVE_BYTES > free:
            raise StorageFullError(
                f"working files of about {size(still)} do not fit into {self.place}, which has {size(free)} free",
                expected=f"room for them and {size(_RESERVE_BYTES)} more; rows beyond the memory budget of "
                f"{size(self.memory_bytes)} go to disk",
                do="free some disk space, set LUTHIER_SCRATCH to a folder on a larger disk, or raise "
                "LUTHIER_DATA_MEMORY_BYTES",
            )

    def wrote(self, num_bytes: int) -> None:
        """Count what was written."""
        self.written_bytes += num_bytes


def _default_budget() -> int:
    return int(MEMORY_SHARE * memory_bytes()[1])


class Spool:
    """An array that grows at its end; `array` ends it. It is in memory, or mapped from a file beyond the budget.

    Args:
        spill: the budget, and where files go.
        dtype: of the values.
        width: columns of a row; None for an array of one dimension.
    """

    def __init__(self, spill: Spill, dtype: npt.DTypeLike, width: int | None = None) -> None:
        self._spill, self._dtype, self._width = spill, np.dtype(dtype), width
        self._parts: list[npt.NDArray[Any]] = []
        self._num_values = 0
        self._held = 0
        self._file: IO[bytes] | None = None
        self._path: Path | None = None

    def append(self, values: npt.NDArray[Any], share_done: float = 1.0) -> None:
        """Add values (rows of `width` where there is one).

        Args:
            values: not to be changed afterwards, since they may be kept as they are.
            share_done: how much of all values there is with these, 0 to 1; it foretells how large the file becomes.

        Raises:
            StorageFullError: the disk is full, or has too little room for what is to come.
        """
        values = np.ascontiguousarray(values, dtype=self._dtype)
        self._num_values += values.size
        if self._file is None:
            if self._spill.hold(values.nbytes):
                self._held += values.nbytes
                self._parts.append(values)
                return
            self._begin_file(share_done)
        self._write(values)

    def array(self) -> npt.NDArray[Any]:
        """All values. Nothing can be added afterwards."""
        shape = (-1,) if self._width is None else (-1, self._width)
        if self._file is None:
            made = np.concatenate(self._parts) if self._parts else np.zeros(0, dtype=self._dtype)
            self._parts = []
            made = made.reshape(shape)
            weakref.finalize(made, self._spill.release, self._held)
            return made
        with disk_full_explained(self._spill.place):
            self._file.close()
        if not self._num_values:  # an empty file cannot be mapped
            return np.zeros(0, dtype=self._dtype).reshape(shape)
        assert self._path is not None
        mapped = np.memmap(self._path, dtype=self._dtype, mode="r").reshape(shape)
        # The mapping keeps the bytes; without a name they go with it, also where the process is killed.
        self._path.unlink()
        return mapped

    def _begin_file(self, share_done: float) -> None:
        self._spill.check_room(self._num_values * self._dtype.itemsize / max(share_done, 1e-9))
        self._path = self._spill.new_file()
        with disk_full_explained(self._spill.place):
            self._file = self._path.open("wb")
        for part in self._parts:
            self._write(part)
        self._parts = []
        self._spill.release(self._held)
        self._held = 0

    def _write(self, values: npt.NDArray[Any]) -> None:
        assert self._file is not None
        with disk_full_explained(self._spill.place):
            self._file.write(values.data)
        self._spill.wrote(values.nbytes)
