"""Data files in an object store that fsspec has a driver for: one file, or those that match a pattern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

from luthier.core.errors import DataSourceError, LuthierError, NotFoundError
from luthier.core.ids import sha256_bytes
from luthier.core.system.artifact_transfer import access_variables, open_root
from luthier.core.system.download import Opened, RemoteFile, RemoteSource

_BLOCK_BYTES: Final = 8 << 20
_STAMPS: Final = ("ETag", "etag", "md5Hash", "LastModified", "updated", "created", "mtime")
"""Names that drivers have for the version of a content, the most reliable first."""


def look_up_objects(url: str) -> RemoteSource:
    """The object of an address such as `s3://bucket/train.parquet`, or all that match `s3://bucket/rows/*.parquet`.

    Raises:
        NotFoundError: there is none.
        RequestError: no driver for such a store is installed.
        DataSourceError: the store does not answer, or refuses.
    """
    explain = partial(_explained, url)
    files, place = open_root(url, what="rows", setting="the address")
    try:
        # With what the listing says of each: a request for each object would be thousands, before every download.
        found = files.glob(place, detail=True) if "*" in place else {place: files.info(place)}
    except Exception as error:
        raise (explain(error, "") or error) from error
    found = {one: found[one] for one in sorted(found) if found[one].get("type") != "directory"}
    if not found:
        raise NotFoundError(f"there is no file {url}", expected="at least one data file", do="check the address")
    stamps = [_stamp(info) for info in found.values()]
    # Of objects that are known by themselves others may be added later without a change of these.
    are_known = "*" in place and all(stamps)
    revision = "" if not all(stamps) else stamps[0] if len(stamps) == 1 else _together(stamps)
    return RemoteSource(
        revision,
        tuple(
            RemoteFile(
                PurePosixPath(one).name,
                info.get("size"),
                partial(_open_at, files, one),
                place=one if are_known else "",
                stamp=stamp if are_known else "",
            )
            for (one, info), stamp in zip(found.items(), stamps, strict=True)
        ),
        explain,
        _may_pass,
    )


def _stamp(info: Mapping[str, Any]) -> str:
    for name in _STAMPS:
        if info.get(name):
            kind = "ETag" if name.lower() == "etag" else name
            return f"{kind} {info[name]}"
    return ""


def _together(stamps: list[str]) -> str:
    return f"{len(stamps)} objects {sha256_bytes(chr(10).join(stamps).encode())[:16]}"


@contextmanager
def _open_at(files: Any, place: str, start: int) -> Iterator[Opened]:
    # No read-ahead: blocks are read in order, each once.
    with files.open(place, "rb", block_size=_BLOCK_BYTES, cache_type="none") as file:
        file.seek(start)
        yield Opened(start, iter(partial(file.read, _BLOCK_BYTES), b""))


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)


def _explained(url: str, error: Exception, what: str) -> LuthierError | None:
    """The error by its kind alone: the words of a driver may hold an address or a key."""
    if isinstance(error, LuthierError):
        return error
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"there is no file {url}", expected="a data file, or a pattern of some", do="check it")
    return DataSourceError(
        f"{what or url} could not be read: {type(error).__name__}",
        expected="a store that answers, and a key that may read it",
        do=f"check the address, {access_variables(url)} in the environment of this process, then try again: the "
        "download continues where it ended",
    )
