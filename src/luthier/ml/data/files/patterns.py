"""Files of this machine by a pattern, such as `data/*.parquet` or `data/**/*.jsonl.gz`."""

from __future__ import annotations

from pathlib import Path

from luthier.core.errors import NotFoundError


def matching_files(path: Path) -> tuple[tuple[Path, str], ...]:
    """The files that match a path with `*`, in the order of their paths, each with what messages call it.

    `*` stands for any part of a name, `**` for any number of folders. Hidden files and folders do not match. Where a
    file has `*` in its name, it is that file.

    Args:
        path: with `*` in it.

    Returns:
        Files, each with its path below the last folder that has no `*`.

    Raises:
        NotFoundError: no file matches.
    """
    if path.is_file():
        return ((path, path.name),)
    first = next((place for place, part in enumerate(path.parts) if "*" in part), len(path.parts))
    root, rest = Path(*path.parts[:first]), path.parts[first:]
    found = {one.relative_to(root) for one in root.glob("/".join(rest)) if one.is_file()}
    shown = sorted(one.as_posix() for one in found if not any(part.startswith(".") for part in one.parts))
    if not shown:
        raise NotFoundError(f"no file matches {path}", expected="at least one data file", do="check folder and pattern")
    return tuple((root / one, one) for one in shown)
