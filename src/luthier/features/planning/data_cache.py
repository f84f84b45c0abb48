"""The limits of downloaded data files and of mixtures in the cache of the home.

What was used longest ago is removed first, when something new arrives. What was used within the last hour stays, and so
does what a run needs that is planned, running or paused: its rows could not be read again if their source had changed.
Files of streamed sources are needed only while they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import NotFoundError
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.bounded_folder import Entry


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """A part of the cache with a limit.

    Attributes:
        what: it holds.
        folder: of its entries.
        max_bytes: the limit.
    """

    what: str
    folder: Path
    max_bytes: int


def cache_folders(context: Context) -> tuple[CacheFolder, ...]:
    """The parts of the cache that hold rows."""
    settings = context.settings
    return (
        CacheFolder("downloaded data files", settings.remote_data_folder / "files", settings.remote_data_cache_bytes),
        CacheFolder("mixtures of sources", settings.mixtures_folder, settings.mixtures_cache_bytes),
    )


def make_room(context: Context, newest: Path) -> list[Entry]:
    """Remove what was used longest ago of the part of the cache that a new file is in, where it exceeds its limit.

    Args:
        context: The home.
        newest: The file, which stays.

    Returns:
        What was removed, which the progress shows, too.
    """
    from luthier.ml.data.files.bounded_folder import remove_least_used

    found = next((one for one in cache_folders(context) if newest.is_relative_to(one.folder)), None)
    if found is None:
        return []

    @cache
    def held() -> frozenset[str]:  # asked only where something is to be removed
        return names_held_by_runs(context)

    removed = remove_least_used(found.folder, found.max_bytes, newest=newest, is_held=lambda name: name in held())
    if removed:
        size = sum(one.num_bytes for one in removed)
        title = f"Cache: {len(removed):,} of the {found.what} removed ({size:,} bytes), used longest ago"
        with context.progress.task(title, total=None, unit="files"):
            pass
    return removed


def names_held_by_runs(context: Context) -> frozenset[str]:
    """Entries that runs need which are planned, running or paused: digests of files, and names of mixtures."""
    held = set[str]()
    for run_id in context.runs.unfinished():
        try:
            data = context.runs.plan(run_id).data
        except NotFoundError:  # deleted a moment ago
            continue
        held |= {file.sha256 for one in data.sources if not one.is_streamed for file in one.files}
        general = (data.replay.rows, data.replay.held_out) if data.replay else ()
        profiles = (data.train, data.validation, data.held_out, *general)
        held |= {Path(one.file).parent.name for one in profiles if one is not None}
    return frozenset(held)


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What a part of the cache holds.

    Attributes:
        what: It holds.
        folder: Of its entries.
        max_bytes: The limit.
        num_entries: How many there are.
        num_bytes: Their size.
        num_removed: How many were removed just now.
        num_removed_bytes: Their size.
    """

    what: str
    folder: str
    max_bytes: int
    num_entries: int
    num_bytes: int
    num_removed: int
    num_removed_bytes: int


def cache_use(context: Context, *, clear: bool = False) -> list[CacheUse]:
    """What the parts of the cache hold that have rows.

    Args:
        context: The home.
        clear: Remove everything first that no run needs and that was not used within the last hour.
    """
    from luthier.ml.data.files.bounded_folder import entries_of, remove_least_used

    held = names_held_by_runs(context) if clear else frozenset()
    found = []
    for part in cache_folders(context):
        removed = remove_least_used(part.folder, 0, is_held=held.__contains__) if clear else []
        left = entries_of(part.folder)
        found.append(
            CacheUse(
                what=part.what,
                folder=str(part.folder),
                max_bytes=part.max_bytes,
                num_entries=len(left),
                num_bytes=sum(one.num_bytes for one in left),
                num_removed=len(removed),
                num_removed_bytes=sum(one.num_bytes for one in removed),
            )
        )
    return found
