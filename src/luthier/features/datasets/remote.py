"""Use case: rows that are elsewhere, downloaded into the cache of the home, where recipes that name them find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.data_sources import is_remote
from luthier.core.errors import RequestError
from luthier.features.planning.data_cache import make_room
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.remote.cache import FetchedFile


@dataclass(frozen=True, slots=True)
class RemoteRows:
    """A remote source on this machine.

    Attributes:
        source: Its name.
        revision: What it was resolved to.
        before: The revision that was there before; None where there was none.
        files: In the order in which their rows are read.
        was_there: Whether nothing was downloaded.
    """

    source: str
    revision: str
    before: str | None
    files: tuple[FetchedFile, ...]
    was_there: bool

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data fetch --json`."""
        files = [
            {"name": one.name, "path": str(one.path), "sha256": one.sha256, "num_bytes": one.num_bytes}
            for one in self.files
        ]
        return {
            "source": self.source,
            "revision": self.revision,
            "before": self.before,
            "was_there": self.was_there,
            "files": files,
        }


def fetch_rows(context: Context, source: str, *, refresh: bool = False) -> RemoteRows:
    """Download a remote source, if it is not there yet.

    Args:
        context: The home.
        source: As recipes name it.
        refresh: Look for a newer revision, and use it from now on. Runs that have begun keep theirs.

    Raises:
        RequestError: The source is a path, or malformed.
        NotFoundError: No such dataset, split or file.
        DataSourceError: It cannot be fetched.
        StorageFullError: No room.
    """
    from luthier.ml.data.remote.cache import cached_revision, fetch

    if not is_remote(source):
        raise RequestError(
            f"{source[:200]!r} is not a remote source",
            expected="hub:ORGANISATION/DATASET, or an address that begins with https://, s3://, gs:// or az://",
            do="use the path of a file of this machine as it is",
        )
    folder = context.settings.remote_data_folder
    before = cached_revision(folder, source)
    found = fetch(source, folder, context.progress, refresh=refresh)
    if not found.was_there:
        make_room(context, newest=found.files[-1].path)
    was_there = found.was_there or before == found.revision
    return RemoteRows(source.partition("?")[0], found.revision, before, found.files, was_there)
