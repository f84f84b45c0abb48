"""Files of this machine by a pattern, such as `data/*.parquet` or `data/**/*.jsonl.gz`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from luthier.core.errors import NotFoundError, RequestError


def matching_files(path: Path) -> tuple[tuple[Path, str], ...]:
    """The files that match a path with `*`, in the order of their paths, each with what messages call it.

    `*` matches any part of a name, `**` for any number of folders. Hidden files and folders do not match. Where a
    file has `*` in its name, it is that file.

    Args:
        path: with `*` in it.

    Returns:
        Files, each with its path below the last folder that has no `*`.

    Raises:
        NotFoundError: no file matches.
        RequestError: `**` beside other letters, such as `**.jsonl`.
    """
    if path.is_file():
        return ((path, path.name),)
    first = next((place for place, part in enumerate(path.parts) if "*" in part), len(path.parts))
    root, rest = Path(*path.parts[:first]), path.parts[first:]
    if wrong := next((part for part in rest if "**" in part and part != "**"), None):
        name = re.sub(r"\*+", "*", wrong)
        raise RequestError(
            f"{path} has {wrong!r}",
            expected="** as a whole part of a path, or * inside a name",
            do=f"write **/{name} for the files of all folders below, or {name} for those of one",
        )
    found = {one.relative_to(root) for one in root.glob("/".join(rest)) if one.is_file()}
    shown = sorted(one.as_posix() for one in found if not any(part.startswith(".") for part in one.parts))
    if not shown:
        raise NotFoundError(f"no file matches {path}", expected="at least one data file", do="check folder and pattern")
    return tuple((root / one, one) for one in shown)


def files_by_name(found: Sequence[tuple[Path, str]], names: Sequence[str]) -> tuple[tuple[Path, str], ...]:
    """The files with these names, without a look into any of them.

    Args:
        found: as `matching_files` returns them.
        names: paths below the folder of the pattern, one a file. Where not all of them are there and none has a folder,
            they are taken as the last parts of paths, which plans of earlier versions hold: several may be equal.
    """
    wanted = set(names)
    exact = tuple(one for one in found if one[1] in wanted)
    if len(exact) >= len(names) or any("/" in name for name in names):
        return exact
    return tuple(one for one in found if one[0].name in wanted)
