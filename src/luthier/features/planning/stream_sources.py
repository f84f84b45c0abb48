"""The sources of a stream before it begins: their files are listed, and what identifies their content is noted.

A file of this machine is known by its digest, a remote one by the revision of its source. Each remote file is
downloaded when it is read, or in the background while the one before it is; its digest is compared each time.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.data_sources import SourceFile, SourcePlan, SourceRecipe, is_remote
from luthier.core.errors import BusyError
from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.core.system.process_setup import start_daemon
from luthier.features.planning.data_cache import make_room
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.source import Source
    from luthier.ml.data.stream.reading import Shard


@dataclass(frozen=True, slots=True)
class PinnedSource:
    """A source whose files are known and compared when they are read.

    Attributes:
        plan: what a plan says of it.
        shards: its files, to be opened.
        sizes: of these in bytes, as they are stored; None where a server does not state it.
        columns: field of the shape -> column; None where it is to be found.
    """

    plan: SourcePlan
    shards: tuple[Shard, ...]
    sizes: tuple[int | None, ...]
    columns: Mapping[str, str] | None

    @property
    def content(self) -> dict[str, Any]:
        """What decides its rows, as a document."""
        # Files of a revision have the content that it had; those of this machine are known by their digests.
        files = [[file.name, "" if self.plan.revision else file.sha256] for file in self.plan.files]
        columns = dict(self.columns or {})
        return {"revision": self.plan.revision, "files": files, "columns": columns, "weight": self.plan.weight}


def pinned_source(
    context: Context,
    number: int,
    name: str,
    source: SourceRecipe,
    base_dir: Path,
    mapping: Mapping[str, str] | None,
) -> PinnedSource:
    """A source of a recipe with its files.

    Args:
        context: The home.
        number: Its place in the list of sources.
        name: Of the source.
        source: As the recipe has it.
        base_dir: From which relative paths count.
        mapping: Field of the shape -> column, where the source has none of its own.

    Raises:
        NotFoundError: No such file, dataset or split.
        DataSourceError: It cannot be listed.
    """
    columns = source.columns if source.columns is not None else mapping
    if is_remote(source.path):
        shards, files, sizes, revision = _remote(context, number, name, source.path)
    else:
        shards, files, sizes, revision = _local(number, base_dir / source.path)
    plan = SourcePlan(
        split="train",
        name=name,
        path=source.path,
        revision=revision,
        files=files,
        first_row=1,
        num_rows=0,
        weight=source.weight,
        is_streamed=True,
    )
    return PinnedSource(plan, shards, sizes, columns)


_Files = tuple[tuple["Shard", ...], tuple[SourceFile, ...], tuple[int | None, ...], str | None]


def _local(number: int, path: Path) -> _Files:
    """A file of this machine: known by its digest, and unchanged as long as size and time of change are."""
    from luthier.ml.data.files.source import changed_while_read, open_source
    from luthier.ml.data.stream.reading import Shard

    open_source(path)  # names what is wrong with a missing or empty file
    before = path.stat()
    file = SourceFile(name=path.name, sha256=sha256_file(path), num_bytes=before.st_size, num_rows=0)

    def opened() -> Source:
        now = path.stat()
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise changed_while_read(path.name)
        return open_source(path)

    return (Shard(number, path.name, opened),), (file,), (before.st_size,), None


def _remote(context: Context, number: int, name: str, path: str) -> _Files:
    """The files of a remote source at its revision; each is downloaded when it is read."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.remote.cache import FileFetcher, list_files
    from luthier.ml.data.stream.reading import Shard

    folder = context.settings.remote_data_folder
    listing = list_files(path, folder, context.progress)
    fetcher = FileFetcher(listing, folder, context.progress)
    is_one = len(listing.names) == 1

    def opener(place: int, shown: str) -> Callable[[], Source | None]:
        def opened() -> Source | None:
            fetched = fetcher.fetch(place)
            make_room(context, newest=fetched.path)
            return None if _is_empty(fetched.path) else open_source(fetched.path, shown_name=shown)

        return opened

    def prefetcher(place: int) -> Callable[[], None]:
        quiet = FileFetcher(listing, folder, SilentProgress())

        def fetch() -> None:
            with suppress(Exception):  # the same happens, and is reported, when the file is opened
                quiet.fetch(place)

        return lambda: None if quiet.is_there(place) else _in_background(fetch)

    shown = [file if is_one else f"{name}/{file}" for file in listing.names]
    shards = tuple(Shard(number, one, opener(place, one), prefetcher(place)) for place, one in enumerate(shown))
    files = tuple(
        SourceFile(name=file, sha256="", num_bytes=size or 0, num_rows=0)
        for file, size in zip(listing.names, listing.sizes, strict=True)
    )
    return shards, files, listing.sizes, listing.revision


def _is_empty(path: Path) -> bool:
    """Whether a file has no byte, once it is unpacked. Of damaged gzip data `open_source` says what is wrong."""
    if path.suffix.lower() != ".gz" or not path.stat().st_size:
        return not path.stat().st_size
    with suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
        return not file.read(1)
    return False


def _in_background(fetch: Callable[[], None]) -> None:
    with suppress(BusyError):  # no more threads: the file is fetched when it is opened
        start_daemon(fetch, "prefetch of a shard")
