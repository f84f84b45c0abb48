"""Find the documents in folders: each once, in a fixed order, and what is left out with its reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.errors import DataError, NotFoundError


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A file to read.

    Attributes:
        path: where it is.
        name: its path relative to the folder given, with / between, by which rows name it.
    """

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file or folder that is not read, and why.

    Attributes:
        name: its path relative to the folder given.
        kind: what it is left out as, the same for all of its sort.
        reason: why, for people.
    """

    name: str
    kind: str
    reason: str


@dataclass
class _Walk:
    base: Path
    roots: tuple[Path, ...]
    kinds: Collection[str]
    leave_out: Collection[Path]
    found: list[FoundDocument] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    seen: dict[tuple[int, int], str] = field(default_factory=dict)


def find_documents(
    places: Sequence[Path], *, kinds: Collection[str], leave_out: Collection[Path] = ()
) -> tuple[list[FoundDocument], list[SkippedFile]]:
    """The documents in the given folders and files, sorted by name, and all that is left out.

    A name is relative to the folder given; where several places are given, to the folder that holds all of them.
    A file is found once, whatever number of paths and links lead to it. Left out: hidden files and folders, links to
    folders (never followed), links that lead outside of the places or nowhere, pipes and devices, folders that cannot
    be read, files whose extension is not in `kinds`. Only the paths in `leave_out` (the caller's own) are not even
    listed. What a person named is read even where it is hidden or a link.

    Args:
        places: files and folders.
        kinds: extensions that are read, in lower case, with the dot.
        leave_out: paths that are skipped without being listed.

    Raises:
        NotFoundError: a place that is not there.
        DataError: a place that is neither file nor folder.
    """
    for place in places:
        if not place.exists():
            raise NotFoundError(f"no file or folder {place}", expected="documents to read", do="check the path")
        if not place.is_dir() and not place.is_file():
            raise DataError(
                f"{place} is a pipe or a device", expected="a file or a folder", do="write it to a file first"
            )
    roots = tuple(dict.fromkeys(place.resolve() for place in places))
    base = roots[0] if len(roots) == 1 and roots[0].is_dir() else Path(os.path.commonpath([r.parent for r in roots]))
    walk = _Walk(base, roots, kinds, {path.resolve() for path in leave_out})
    for root in sorted(roots):
        if root.is_dir():
            _walk_folder(walk, root)
        else:
            _take(walk, root)
    # Links come last: a file that is also reached directly is taken under its own name.
    for link in sorted(walk.links):
        _take_link(walk, link)
    return sorted(walk.found, key=lambda one: one.name), sorted(walk.skipped, key=lambda one: (one.kind, one.name))


def _walk_folder(walk: _Walk, top: Path) -> None:
    """All files below, without recursion: a tree may be deeper than Python's stack."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            # Device and inode: the same folder under two names, or a mount that contains itself, is walked once.
            identity = _identity(folder.stat())
            if identity in walk.seen:  # given twice, or a folder within another that was given, too
                continue
            walk.seen[identity] = _name(walk, folder)
            # scandir's order depends on the file system; the order of rows must not.
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            walk.skipped.append(SkippedFile(_name(walk, folder), "unreadable", f"cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            try:
                inner = _sort(walk, entry)
            except OSError as error:  # some file systems tell what an entry is only when it is looked at
                name = _name(walk, Path(entry.path))
                walk.skipped.append(SkippedFile(name, "unreadable", f"cannot be read: {error.strerror}"))
                continue
            if inner is not None:
                waiting.append(inner)


def _sort(walk: _Walk, entry: os.DirEntry[str]) -> Path | None:
    """Take, note or leave one entry; returns a folder to go into."""
    path = Path(entry.path)
    is_folder = entry.is_dir(follow_symlinks=False)
    if path in walk.leave_out:
        return None
    if entry.name.startswith((".", "~$")) and path not in walk.roots:
        reason = "a hidden folder" if is_folder else "a hidden file"
        walk.skipped.append(SkippedFile(_name(walk, path), "hidden", reason))
    elif entry.is_symlink():
        walk.links.append(path)
    elif is_folder:
        return path
    else:
        _take(walk, path)
    return None


def _take(walk: _Walk, path: Path, link: Path | None = None) -> None:
    name = _name(walk, link or path)
    if path in walk.leave_out:
        return
    try:
        status = path.stat()
    except OSError as error:
        walk.skipped.append(SkippedFile(name, "unreadable", f"cannot be read: {error.strerror}"))
        return
    suffix = (link or path).suffix.lower()
    if not stat.S_ISREG(status.st_mode):
        walk.skipped.append(SkippedFile(name, "special", "a pipe, socket or device"))
    elif (identity := _identity(status)) in walk.seen:
        if (first := walk.seen[identity]) != name:
            walk.skipped.append(SkippedFile(name, "same file", f"is the same file as {first}"))
    elif suffix not in walk.kinds:
        walk.skipped.append(SkippedFile(name, suffix or "no extension", "no reader for this kind of file"))
    else:
        walk.seen[identity] = name
        walk.found.append(FoundDocument(link or path, name))


def _take_link(walk: _Walk, link: Path) -> None:
    name = _name(walk, link)
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise RuntimeError for a loop
        walk.skipped.append(SkippedFile(name, "link", "a link that leads nowhere, or round in a circle"))
        return
    if target.is_dir():
        walk.skipped.append(SkippedFile(name, "link", "a link to a folder: not followed"))
    elif not any(root == target or root in target.parents for root in walk.roots):
        walk.skipped.append(SkippedFile(name, "link", "a link to a file outside of the folders given"))
    else:
        _take(walk, target, link)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _name(walk: _Walk, path: Path) -> str:
    relative = os.path.relpath(path, walk.base).replace(os.sep, "/")
    # A file name may be any bytes; what is not UTF-8 cannot be written into rows.
    return relative.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def by_kind(skipped: Sequence[SkippedFile], num_names: int = 3) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """For each kind of what was left out: how many, and the first names; in order of kind."""
    kinds: dict[str, list[str]] = {}
    for one in skipped:
        kinds.setdefault(one.kind, []).append(one.name)
    for kind, names in sorted(kinds.items()):
        yield kind, len(names), tuple(names[:num_names])
