"""The files of a remote source as a run began with them, and the same source later.

A source of one commit stays what it is. Of objects that match a pattern each is known by its ETag: what was added since
is not read, what was changed or removed is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from luthier.core.errors import DataSourceError
from luthier.core.ports import Progress
from luthier.core.system.download import RemoteSource

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class SourceListing:
    """The files of a source at one revision; they need not be on this machine.

    Attributes:
        source: as it was named.
        revision: as of `FetchedSource`.
        pinned: the name of the source with its revision; that of the source where it has none.
        names: of the files, in the order in which their rows are read.
        sizes: of the files in bytes; None where the server does not state it.
        objects: path in the store and ETag of each file, where they are known by that; else empty.
    """

    source: str
    revision: str
    pinned: str
    names: tuple[str, ...]
    sizes: tuple[int | None, ...]
    objects: tuple[tuple[str, str], ...] = ()


def narrowed(found: RemoteSource, before: SourceListing, progress: Progress) -> RemoteSource:
    """A source as it was listed: without the objects that were added since, which the progress names.

    Args:
        found: the source as it is now.
        before: the listing.
        progress: shows what was added.

    Raises:
        DataSourceError: a listed object was changed or removed.
    """
    now = {file.place: file for file in found.files}
    for place, stamp in before.objects:
        if place not in now or now[place].stamp != stamp:
            what = f"{place} was removed" if place not in now else f"{place} is now at {now[place].stamp}"
            raise changed_source(before, what)
    listed = {place for place, _ in before.objects}
    added = [place for place in now if place not in listed]
    if added:
        shown = ", ".join(added[:_SHOWN]) + (f" and {len(added) - _SHOWN:,} more" if len(added) > _SHOWN else "")
        were, are = ("objects were", "are") if len(added) > 1 else ("object was", "is")
        title = f"{len(added):,} {were} added since the run began, and {are} not read: {shown}"
        with progress.task(title, total=None, unit="files"):
            pass
    return replace(found, revision=before.revision, files=tuple(now[place] for place, _ in before.objects))


def listing_of(
    source: str,
    revision: str,
    pinned: str,
    files: Sequence[tuple[str, int | None]],
    objects: Sequence[tuple[str, str]],
) -> SourceListing:
    """A listing of files with these names and sizes; objects: path and ETag of each, empty where they have none."""
    names, sizes = (tuple(name for name, _ in files), tuple(size for _, size in files))
    known = tuple((place, stamp) for place, stamp in objects) if all(place for place, _ in objects) else ()
    return SourceListing(source, revision, pinned, names, sizes, known)


def changed_source(listing: SourceListing, came: str) -> DataSourceError:
    """The error about a source that is not the listed one any more."""
    return DataSourceError(
        f"a source has changed while its rows were streamed: {came}",
        expected=f"revision {listing.revision}, as when the run began",
        do="restore the source and resume the run, or start a new run: `luthier data fetch --refresh SOURCE` looks "
        "for the newest revision",
    )
