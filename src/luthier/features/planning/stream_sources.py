"""The sources of a stream before it begins: their files are listed, and what identifies their content is noted.

A file of this machine is known by its digest, a remote one by the revision of its source. Each remote file is
downloaded when it is read, or in the background while the one before it is; its digest is compared each time.

A run that is resumed reads the files of its plan. What was added since under a pattern is not read, and named.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.data_sources import SourceFile, SourcePlan, SourceRecipe, is_pattern, is_remote
from luthier.core.errors import BusyError
from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.core.system.process_setup import start_daemon
from luthier.features.planning.data_cache import make_room
from luthier.features.planning.pattern_files import files_of_plan
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.source import Source
    from luthier.ml.data.remote.listing import SourceListing
    from luthier.ml.data.stream.reading import Shard
    from luthier.ml.data.stream.sample import UsedPart


@dataclass(frozen=True, slots=True)
class PinnedSource:
    """A source whose files are known and compared when they are read.

    Attributes:
        plan: what a plan says of it.
        shards: its files, to be opened.
        sizes: of these in bytes, as they are stored; None where a server does not state it.
        columns: field of the shape -> column; None where it is to be found.
        part: how much of it is used.
    """

    plan: SourcePlan
    shards: tuple[Shard, ...]
    sizes: tuple[int | None, ...]
    columns: Mapping[str, str] | None
    part: UsedPart

    @property
    def content(self) -> dict[str, Any]:
        """What decides its rows, as a document."""
        # Files of a revision have the content that it had; those of this machine are known by their digests.
        files = [[file.name, "" if self.plan.revision else file.sha256] for file in self.plan.files]
        columns = dict(self.columns or {})
        content = {"revision": self.plan.revision, "files": files, "columns": columns, "weight": self.plan.weight}
        used = {"fraction": self.part.fraction, "rows": self.part.num_rows}
        return content | {name: value for name, value in used.items() if value is not None}


def pinned_source(
    context: Context,
    number: int,
    name: str,
    source: SourceRecipe,
    base_dir: Path,
    mapping: Mapping[str, str] | None,
    before: SourcePlan | None = None,
) -> PinnedSource:
    """A source of a recipe with its files.

    Args:
        context: The home.
        number: Its place in the list of sources.
        name: Of the source.
        source: As the recipe has it.
        base_dir: From which relative paths count.
        mapping: Field of the shape -> column, where the source has none of its own.
        before: As the plan of a run has it that is resumed or looked into; None for the files as they are now.

    Raises:
        NotFoundError: No such file, dataset or split.
        DataSourceError: It cannot be listed.
        ConflictError: A file of the plan is not there any more.
    """
    from luthier.ml.data.stream.sample import UsedPart

    columns = source.columns if source.columns is not None else mapping
    if is_remote(source.path):
        shards, files, sizes, revision = _remote(context, number, name, source.path, before)
    else:
        shards, files, sizes, revision = _local(context, number, name, base_dir / source.path, before)
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
        fraction=source.fraction,
        max_rows=source.rows,
    )
    return PinnedSource(plan, shards, sizes, columns, UsedPart(source.fraction, source.rows))


_Files = tuple[tuple["Shard", ...], tuple[SourceFile, ...], tuple[int | None, ...], str | None]


def _local(context: Context, number: int, name: str, path: Path, before: SourcePlan | None) -> _Files:
    """Files of this machine: known by their digests, and unchanged as long as size and time of change are."""
    from luthier.ml.data.files.patterns import matching_files
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.stream.reading import Shard

    found: Sequence[tuple[Path, str]] = ((path, path.name),)
    if is_pattern(str(path)):
        found = files_of_plan(context, path, matching_files(path), () if before is None else before.files)
    shards, files = [], []
    total = sum(file.stat().st_size for file, _ in found if file.is_file())
    with context.progress.task(f"Digests of {name}", total, "bytes") as task:
        for file, below in found:
            shown = f"{name}/{below}" if len(found) > 1 else below
            open_source(file, shown_name=shown)  # names what is wrong with a missing or empty file
            stat = file.stat()
            files.append(SourceFile(name=below, sha256=sha256_file(file), num_bytes=stat.st_size, num_rows=0))
            shards.append(Shard(number, shown, _opener(file, shown, stat)))
            task.advance(stat.st_size)
    return tuple(shards), tuple(files), tuple(file.num_bytes for file in files), None


def _opener(path: Path, shown: str, before: os.stat_result) -> Callable[[], Source | None]:
    from luthier.ml.data.files.source import changed_while_read, open_source

    def opened() -> Source | None:
        now = path.stat()
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise changed_while_read(shown)
        return open_source(path, shown_name=shown)

    return opened


def _remote(context: Context, number: int, name: str, path: str, before: SourcePlan | None) -> _Files:
    """The files of a remote source at its revision; each is downloaded when it is read."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.remote.cache import FileFetcher, list_files
    from luthier.ml.data.stream.reading import Shard

    folder = context.settings.remote_data_folder
    listing = list_files(path, folder, context.progress, before=None if before is None else _listing_of(before))
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
    objects = listing.objects or (("", ""),) * len(listing.names)
    files = tuple(
        SourceFile(name=file, sha256="", num_bytes=size or 0, num_rows=0, place=place, stamp=stamp)
        for file, size, (place, stamp) in zip(listing.names, listing.sizes, objects, strict=True)
    )
    return shards, files, listing.sizes, listing.revision


def _listing_of(plan: SourcePlan) -> SourceListing:
    """The files of a source as a plan has them."""
    from luthier.ml.data.remote.listing import SourceListing

    return SourceListing(
        source=plan.path,
        revision=plan.revision or "",
        pinned=plan.path,
        names=tuple(file.name for file in plan.files),
        sizes=tuple(file.num_bytes or None for file in plan.files),
        objects=tuple((file.place, file.stamp) for file in plan.files if file.place),
    )


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
