"""Remote data files on this machine: each downloaded once and kept by its digest, with what a name was resolved to.

    FOLDER/sources/KEY.json    revision and digests of the files of a source
    FOLDER/listings/KEY.json   revision and names of the files of a source of which each is downloaded when it is needed
    FOLDER/files/SHA256/NAME   a file
    FOLDER/incoming/KEY/       what has arrived of a download that was interrupted

A source that is there needs no network. A dataset of the hub is there under its name and under its commit.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.data_sources import HUB, check_remote, parse_hub_dataset
from luthier.core.errors import DataSourceError, StorageFullError
from luthier.core.ids import sha256_bytes, sha256_file
from luthier.core.ports import Progress, SilentProgress
from luthier.core.system.download import RemoteSource, download, too_large
from luthier.core.system.files import file_lock, replace_bytes, replace_file, sync
from luthier.ml.data.files.bounded_folder import mark_used
from luthier.ml.data.remote.listing import SourceListing, changed_source, listing_of, narrowed

if TYPE_CHECKING:
    from luthier.ml.data.remote.address import Transport

_LOCK_SECONDS: Final = 6 * 3600.0
_NUM_LOOK_UPS: Final = 5
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.()+= -]+")
_MAX_NAME: Final = 150
_BY_CONTENT: Final = "sha256 "
"""Begins the revision of a source that nothing but its content identifies."""


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file of a source on this machine.

    Attributes:
        name: the last part of its path.
        sha256: the digest of its content.
        num_bytes: its size.
        path: where it is.
        place, stamp: as of `RemoteFile`.
    """

    name: str
    sha256: str
    num_bytes: int
    path: Path
    place: str = ""
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class FetchedSource:
    """A source whose files are on this machine.

    Attributes:
        source: as it was named.
        revision: the commit of a dataset on the hub; of others the ETag or date of change, or the digest where the
            server states neither.
        files: in the order in which their rows are read.
        was_there: whether nothing had to be downloaded.
    """

    source: str
    revision: str
    files: tuple[FetchedFile, ...]
    was_there: bool


def fetch(source: str, folder: Path, progress: Progress, *, refresh: bool = False) -> FetchedSource:
    """The files of a remote source on this machine; what is there already needs no network.

    Args:
        source: `hub:`, `https://`, `s3://`, `gs://` or `az://`.
        folder: where they are kept.
        progress: shows the download.
        refresh: look for a newer revision, and download it.

    Raises:
        RequestError: a malformed name.
        NotFoundError: no such dataset, split or file.
        DataSourceError: it cannot be fetched; what has arrived is kept.
        StorageFullError: the disk has no room for it; nothing is fetched.
        ConflictError: another process is downloading it, and does not end.
    """
    check_remote(source)
    if refresh:
        _listing_path(folder, source).unlink(missing_ok=True)
    elif (cached := _cached(folder, source)) is not None:
        return cached
    lock = folder / "locks" / _key(source)
    with file_lock(lock, what=f"the download of {source.partition('?')[0]}", timeout_seconds=_LOCK_SECONDS):
        # Another process may have fetched it meanwhile.
        if not refresh and (cached := _cached(folder, source)) is not None:
            return cached
        return _fetched(source, look_up(source), folder, progress)


def list_files(source: str, folder: Path, progress: Progress, *, before: SourceListing | None = None) -> SourceListing:
    """The files of a remote source, without downloading them; what was listed or fetched before needs no network.

    A source that nothing but its content identifies is downloaded, since it could change between two files.

    Args:
        source: as of `fetch`.
        folder: where files are kept.
        progress: shows a download, and objects that have been added since a run began.
        before: as a run that is resumed has it: its objects are read, as long as they are unchanged. None for the files
            as they are now.

    Raises:
        RequestError: a malformed name.
        NotFoundError: no such dataset, split or file.
        DataSourceError: the source cannot be read, or an object of `before` was changed or removed.
        StorageFullError: the disk has no room for a source that is downloaded.
        ConflictError: another process is downloading it, and does not end.
    """
    check_remote(source)
    if before is not None and before.objects:
        if not _is_all_there(before, folder):
            narrowed(look_up(source), before, progress)
        return before
    known = _known_listing(folder, source)
    # A commit of the hub stays what it is. Other sources may have changed since, and then cannot be read as listed.
    if known is not None and (source.startswith(HUB) or _is_all_there(known, folder)):
        return known
    try:
        found = look_up(source)
    except DataSourceError:
        if known is None:
            raise
        return known
    objects = [(file.place, file.stamp) for file in found.files]
    if known is not None and known.revision == found.revision:
        # What earlier versions have noted lacks by what each object is known.
        sized = list(zip(known.names, known.sizes, strict=True))
        return listing_of(source, known.revision, known.pinned, sized, objects)
    _entry(folder, source).unlink(missing_ok=True)  # of what is not there as a whole, and no longer to be had
    if not found.revision:
        fetched = fetch(source, folder, progress)
        files = [(file.name, file.num_bytes) for file in fetched.files]
        return listing_of(source, fetched.revision, source, files, [("", "") for _ in files])
    listing = listing_of(
        source,
        found.revision,
        found.pinned or source,
        [(_safe(file.name), file.num_bytes) for file in found.files],
        objects,
    )
    for name in {source, listing.pinned}:
        _write_listing(folder, replace(listing, source=name))
    return listing


def _known_listing(folder: Path, source: str) -> SourceListing | None:
    """What was listed or fetched of a source before."""
    if (entry := _entry_document(folder, source)) is not None:
        # Not compared with their digests here: each file is when it is opened.
        files = [(one["name"], one["num_bytes"]) for one in entry["files"]]
        known = [(one.get("place", ""), one.get("stamp", "")) for one in entry["files"]]
        return listing_of(source, entry["revision"], source, files, known)
    try:
        document = json.loads(_listing_path(folder, source).read_text(encoding="utf-8"))
        names, sizes = tuple(document["names"]), tuple(document["sizes"])
        objects = tuple((place, stamp) for place, stamp in document.get("objects", ()))
        return SourceListing(source, document["revision"], document["pinned"] or source, names, sizes, objects)
    except (OSError, ValueError, KeyError):
        return None


def _is_all_there(listing: SourceListing, folder: Path) -> bool:
    fetcher = FileFetcher(listing, folder, SilentProgress())
    return all(fetcher.is_there(number) for number in range(len(listing.names)))


def _listing_path(folder: Path, source: str) -> Path:
    return folder / "listings" / f"{_key(source)}.json"


def _write_listing(folder: Path, listing: SourceListing) -> None:
    path = _listing_path(folder, listing.source)
    path.parent.mkdir(parents=True, exist_ok=True)
    # An address is not written: its query may hold a signature. The key of the entry identifies it.
    pinned = listing.pinned if listing.pinned.startswith(HUB) else ""
    document = {
        "revision": listing.revision,
        "pinned": pinned,
        "names": listing.names,
        "sizes": listing.sizes,
        "objects": listing.objects,
    }
    replace_bytes(path, json.dumps(document).encode())


class FileFetcher:
    """Downloads files of a listed source one by one, when they are needed.

    Args:
        listing: the source.
        folder: where files are kept.
        progress: shows the download.
    """

    def __init__(self, listing: SourceListing, folder: Path, progress: Progress) -> None:
        self._listing, self._folder, self._progress = listing, folder, progress
        self._found: RemoteSource | None = None
        self._has_told = False

    def fetch(self, number: int) -> FetchedFile:
        """One file on this machine, with the content of the listed revision.

        Args:
            number: of the file, from 0.

        Raises:
            DataSourceError: the source has changed, or cannot be fetched; what has arrived is kept.
            StorageFullError: the disk has no room for it.
        """
        if (there := self._there(number)) is not None:
            return there
        listing = self._listing
        if listing.revision.startswith(_BY_CONTENT):
            fetched = fetch(listing.source, self._folder, self._progress)
            if fetched.revision != listing.revision:
                raise self._changed(f"{listing.source.partition('?')[0]} has {fetched.revision}")
            return fetched.files[number]
        key = _key(f"{listing.pinned}\n{listing.revision}\n{number}")
        shown = f"{listing.names[number]} of {listing.source.partition('?')[0]}"
        with file_lock(self._folder / "locks" / key, what=f"the download of {shown}", timeout_seconds=_LOCK_SECONDS):
            if (there := self._there(number)) is not None:
                return there
            found = self._looked_up()
            file = found.files[number]
            if (known := _known_file(self._folder, file.sha256, _safe(file.name))) is not None:
                self._note_digest(number, known.sha256)
                return known
            incoming = self._folder / "incoming" / key
            incoming.mkdir(parents=True, exist_ok=True)
            part = incoming / "0.part"
            arrived = part.stat().st_size if part.is_file() else 0
            _check_room(listing.source, self._folder, 0 if file.num_bytes is None else file.num_bytes - arrived)
            with self._progress.task(f"Downloading {shown}", file.num_bytes, "bytes", done=arrived) as task:
                digest = download(found, file, part, task)
            if (before := self._digest(number)) not in (None, digest):
                part.unlink()
                raise self._changed(f"{shown} has digest {digest[:12]}, and had {str(before)[:12]} before")
            made = _moved(part, self._folder, digest, _safe(file.name))
            self._note_digest(number, digest)
            shutil.rmtree(incoming, ignore_errors=True)
            return made

    def is_there(self, number: int) -> bool:
        """Whether a file is on this machine; its digest is not compared."""
        digest = self._digest(number)
        return digest is not None and (self._folder / "files" / digest / self._listing.names[number]).is_file()

    def _there(self, number: int) -> FetchedFile | None:
        return _known_file(self._folder, self._digest(number), self._listing.names[number])

    def _digest_path(self, number: int) -> Path:
        key = _key(f"{self._listing.pinned}\n{self._listing.revision}")
        return self._folder / "listings" / key / f"{number}.json"

    def _note_digest(self, number: int, digest: str) -> None:
        path = self._digest_path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, json.dumps({"sha256": digest}).encode())

    def _digest(self, number: int) -> str | None:
        """The digest of a file that was downloaded before; None where it was not."""
        try:
            return str(json.loads(self._digest_path(number).read_text(encoding="utf-8"))["sha256"])
        except (OSError, ValueError, KeyError):
            pass
        entry = _entry_document(self._folder, self._listing.source)
        if entry is None or entry["revision"] != self._listing.revision:
            return None
        return str(entry["files"][number]["sha256"])

    def _looked_up(self) -> RemoteSource:
        # Looked up for each file: only a commit of the hub cannot change meanwhile.
        if self._found is None or not self._listing.pinned.startswith(HUB):
            listing, source = self._listing, _look_up_with_retries(self._listing.pinned)
            if listing.objects and source.revision != listing.revision:
                source = narrowed(source, listing, SilentProgress() if self._has_told else self._progress)
                self._has_told = True
            found = (source.revision, tuple(_safe(file.name) for file in source.files))
            if found != (listing.revision, listing.names):
                raise self._changed(f"{listing.source.partition('?')[0]} is now at {found[0] or 'no revision'}")
            self._found = source
        return self._found

    def _changed(self, came: str) -> DataSourceError:
        return changed_source(self._listing, came)


def cached_revision(folder: Path, source: str) -> str | None:
    """The revision of a source that is on this machine; None where none was downloaded."""
    try:
        return str(json.loads(_entry(folder, source).read_text(encoding="utf-8"))["revision"])
    except (OSError, ValueError, KeyError):
        return None


def fetch_found(
    source: str, found: RemoteSource, folder: Path, progress: Progress, *, max_bytes: int | None = None
) -> FetchedSource:
    """The files of a source that was looked up; what is there of the same revision is not downloaded again.

    Args:
        source: the name that it was looked up by.
        found: what `look_up` has found.
        folder: where the files are kept, and what has arrived of them; of the caller alone.
        progress: shows the download.
        max_bytes: a larger source is refused; None for no limit.

    Raises:
        DataSourceError: it cannot be fetched, or is larger; what has arrived of it is kept.
        StorageFullError: the disk has no room for it.
    """
    if max_bytes is not None:
        if found.num_bytes is not None and found.num_bytes > max_bytes:
            raise too_large(source.partition("?")[0], found.num_bytes, max_bytes)
        found = replace(
            found,
            files=tuple(replace(one, max_bytes=max_bytes) if one.num_bytes is None else one for one in found.files),
        )
    folder.mkdir(parents=True, exist_ok=True)
    cached = _cached(folder, source)
    if cached is not None and cached.revision == found.revision:
        return cached
    return _fetched(source, found, folder, progress)


def look_up(source: str, transport: Transport | None = None) -> RemoteSource:
    """The files of a source as they are now, without downloading them.

    Args:
        source: `hub:`, `https://`, `s3://`, `gs://` or `az://`.
        transport: what opens the connections to an address; None for a plain client.

    Raises:
        RequestError: a malformed name, or no driver for such a store.
        NotFoundError: no such dataset, split or file.
        DataSourceError: no answer, or a refusal.
    """
    # Here, since each of them loads a client that the others do not need.
    if source.startswith(HUB):
        from luthier.ml.data.remote.hub_dataset import look_up_dataset

        return look_up_dataset(parse_hub_dataset(source))
    if source.startswith(("https://", "http://")):
        from luthier.ml.data.remote.address import look_up_address

        return look_up_address(source, transport)
    from luthier.ml.data.remote.object_store import look_up_objects

    return look_up_objects(source)


def _look_up_with_retries(source: str) -> RemoteSource:
    """As `look_up`, in the middle of a run: a server that does not answer for a moment must not end it."""
    for attempt in range(1, _NUM_LOOK_UPS):
        try:
            return look_up(source)
        except DataSourceError:
            time.sleep(2.0**attempt)
    return look_up(source)


def _fetched(source: str, found: RemoteSource, folder: Path, progress: Progress) -> FetchedSource:
    # By revision: what has arrived of another one is no beginning of this one.
    incoming = folder / "incoming" / _key(f"{source}\n{found.revision}")
    incoming.mkdir(parents=True, exist_ok=True)
    parts = [incoming / f"{number}.part" for number in range(len(found.files))]
    there = [_known_file(folder, file.sha256, _safe(file.name)) for file in found.files]
    arrived = sum(
        known.num_bytes if known else part.stat().st_size if part.is_file() else 0
        for known, part in zip(there, parts, strict=True)
    )
    total = found.num_bytes
    _check_room(source, folder, 0 if total is None else total - arrived)
    made = []
    with progress.task(f"Downloading {source.partition('?')[0]}", total, "bytes", done=arrived) as task:
        for file, part, known in zip(found.files, parts, there, strict=True):
            if known is None:
                task.note(file.name)
                known = _moved(part, folder, download(found, file, part, task), _safe(file.name))
            made.append(replace(known, place=file.place, stamp=file.stamp))
    digests = "\n".join(one.sha256 for one in made)
    revision = found.revision or f"{_BY_CONTENT}{made[0].sha256 if len(made) == 1 else sha256_bytes(digests.encode())}"
    for name in {source, found.pinned or source}:
        _write_entry(folder, name, revision, made)
    shutil.rmtree(incoming, ignore_errors=True)
    return FetchedSource(source, revision, tuple(made), was_there=False)


def _check_room(source: str, folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise StorageFullError(
            f"{source.partition('?')[0]} has {num_bytes:,} bytes left to download, the disk of {folder} has {free:,} "
            "bytes left",
            expected="room for all of its files",
            do="free some space, or pass --home on a larger disk",
        )


def _moved(part: Path, folder: Path, sha256: str, name: str) -> FetchedFile:
    final = folder / "files" / sha256 / name
    final.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = part.stat().st_size
    replace_file(part, final)
    sync(final.parent)
    return FetchedFile(name, sha256, num_bytes, final)


def _known_file(folder: Path, sha256: str | None, name: str) -> FetchedFile | None:
    """A file that was downloaded for another source or revision already; None where its bytes have changed."""
    path = folder / "files" / str(sha256) / name
    if sha256 is None or not path.is_file():
        return None
    if sha256_file(path) != sha256:
        path.unlink()
        return None
    mark_used(path)
    return FetchedFile(name, sha256, path.stat().st_size, path)


def _cached(folder: Path, source: str) -> FetchedSource | None:
    """What is on this machine under a name; None where a file of it is missing or damaged."""
    document = _entry_document(folder, source)
    if document is None:
        return None
    files = [_known_file(folder, str(one["sha256"]), str(one["name"])) for one in document["files"]]
    if any(one is None for one in files):
        return None
    return FetchedSource(source, str(document["revision"]), tuple(one for one in files if one), was_there=True)


def _entry_document(folder: Path, source: str) -> dict[str, Any] | None:
    """Revision and files of a source that was fetched; None where it was not."""
    try:
        document: dict[str, Any] = json.loads(_entry(folder, source).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document


def _write_entry(folder: Path, source: str, revision: str, files: list[FetchedFile]) -> None:
    rows = [{name: value for name, value in asdict(file).items() if name != "path"} for file in files]
    document = {"source": source.partition("?")[0], "revision": revision, "files": rows}
    entry = _entry(folder, source)
    entry.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(entry, json.dumps(document, indent=2).encode())


def _entry(folder: Path, source: str) -> Path:
    return folder / "sources" / f"{_key(source)}.json"


def _key(text: str) -> str:
    return sha256_bytes(text.encode())[:32]


def _safe(name: str) -> str:
    """A name of a file that no server can lead out of its folder with."""
    return _NOT_IN_A_NAME.sub("-", name).lstrip(".")[-_MAX_NAME:] or "rows"
