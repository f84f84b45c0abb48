"""Names of adapters inside an engine: their paths, with a number once their files were written again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_FILES: Final = ("*.safetensors", "*.gguf", "*.json")


class AdapterNames:
    """The names under which an engine has loaded adapters; not thread-safe.

    An engine keeps an adapter under its name. An export into the same folder, or to the same file, is another adapter:
    under the old name, the engine would answer with the weights that it has loaded, and running answers must keep
    theirs.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, int]] = {}

    def of(self, path: str) -> str:
        """The name of the adapter that is in this folder or file now."""
        stamp = adapter_stamp(Path(path))
        known, number = self._known.get(path, (stamp, 1))
        # What is gone, or about to be replaced, is not another adapter.
        if stamp and stamp != known:
            known, number = stamp, number + 1
        self._known[path] = (known, number)
        return path if number == 1 else f"{path}#{number}"


def adapter_stamp(path: Path) -> str:
    """Sizes and times of the files of an adapter; empty where it is not there.

    Hashing them takes too long for every request.

    Args:
        path: its folder, or its file.
    """
    files = [path] if path.is_file() else sorted(file for pattern in _FILES for file in path.glob(pattern))
    found = []
    for file in files:
        try:
            its = file.stat()
        except FileNotFoundError:
            return ""  # it is being replaced
        found.append(f"{file.name} {its.st_size} {its.st_mtime_ns}")
    return "; ".join(found)
