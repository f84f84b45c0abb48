"""Nothing that is given away names the folders of the machine that it was made on."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

_ABSOLUTE: Final = re.compile(r"(?:~|/|\.\.?/|[A-Za-z]:[\\/])[^\n]*")
# in a sentence: from where a path may begin to its last slash
_FOLDERS: Final = re.compile(r"(?<![^\s'\"`(\[=])(?:~?/|\.\.?/|[A-Za-z]:\\)(?:[^\s'\"`,;:()\[\]]*[/\\])")


def without_folders(value: Any) -> Any:
    """A document in which every path is its last part, alone or inside a sentence."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    if not isinstance(value, str):
        return value
    # A text that is a path as a whole; one with a blank in its last part may be a sentence.
    if _ABSOLUTE.fullmatch(value) and " " not in last_part(value):
        return last_part(value)
    return _FOLDERS.sub("", value)


def last_part(path: str) -> str:
    """The name of a file or folder, whichever system the path is of."""
    return PureWindowsPath(PurePosixPath(path).name or path).name or path
