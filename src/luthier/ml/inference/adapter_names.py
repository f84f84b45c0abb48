"""Names of adapters inside an engine: their paths, with a number once a folder was written again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_Stamp = tuple[tuple[str, int, int], ...]
_FILES: Final = ("*.safetensors", "*.json")


class AdapterNames:
    """The names under which an engine has loaded adapters; not thread-safe.

    An engine keeps an adapter under its name. An export into the same folder is another adapter: under the old name,
    the engine would answer with the weights that it has loaded, and running answers must keep theirs.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Stamp, int]] = {}

    def of(self, path: str) -> str:
        """The name of the adapter that is in this folder now."""
        stamp = _stamp(Path(path))
        known, number = self._known.get(path, (stamp, 1))
        # A folder that is gone, or about to be replaced, is not another adapter.
        if stamp and stamp != known:
            known, number = stamp, number + 1
        self._known[path] = (known, number)
        return path if number == 1 else f"{path}#{number}"


def _stamp(folder: Path) -> _Stamp:
    """Sizes and times of the files; empty where it is no folder. Hashing them takes too long for every request."""
    found = []
    for file in sorted(file for pattern in _FILES for file in folder.glob(pattern)):
        try:
            its = file.stat()
        except FileNotFoundError:
            return ()  # it is being replaced
        found.append((file.name, its.st_size, its.st_mtime_ns))
    return tuple(found)
