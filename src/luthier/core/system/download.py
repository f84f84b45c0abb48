"""Download a file so that an interruption loses nothing: what has arrived is kept, and continued by any process.

A file is written as a part first. A connection that breaks off is opened again where the part ends, as long as each
attempt receives something; the digest is compared before the part counts as the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from luthier.core.errors import DataSourceError, LuthierError, ModelSourceError
from luthier.core.ids import sha256_file
from luthier.core.ports import ProgressTask
from luthier.core.system.files import disk_full_explained, git_id, is_disk_full, sync

_NUM_ATTEMPTS: Final = 5


class Opened(NamedTuple):
    """An answer with the content of a file.

    Attributes:
        start: the byte that the chunks begin with: the requested one, or 0 where the server sends all of it.
        chunks: the bytes.
    """

    start: int
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that can be downloaded. At most one digest is set.

    Attributes:
        name: the last part of its path.
        num_bytes: its size; None where the server does not state it, and then no download is continued.
        open_at: opens it from a byte on.
        sha256: its digest, where it is known before.
        git_id: git's object id (SHA-1) of small files on the hub.
        max_bytes: where the size is not stated: at most so much is downloaded; None for no limit.
        place: of an object that matches a pattern: its path in the store.
        stamp: the ETag or date of change of that object.
    """

    name: str
    num_bytes: int | None
    open_at: Callable[[int], AbstractContextManager[Opened]]
    sha256: str | None = None
    git_id: str | None = None
    max_bytes: int | None = None
    place: str = ""
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """The files of a source at one revision.

    Attributes:
        revision: the commit, ETag or date of change, which another content does not share; empty where the server
            states neither.
        files: in the order in which their rows are read.
        explain: error and file -> the error for people, or None for one that is passed on.
        may_pass: whether the same request may go well a moment later.
        pinned: the name of the source with its revision; empty where it has none.
        licence: as the hub states it; empty where it does not.
        repo: of the hub, which errors name beside a file; empty for other sources.
        failed: the class of errors about what the server sends.
    """

    revision: str
    files: tuple[RemoteFile, ...]
    explain: Callable[[Exception, str], LuthierError | None]
    may_pass: Callable[[Exception], bool]
    pinned: str = ""
    licence: str = ""
    repo: str = ""
    failed: type[DataSourceError | ModelSourceError] = DataSourceError

    @property
    def num_bytes(self) -> int | None:
        """The size of all files; None where the server does not state one of them."""
        sizes = [file.num_bytes for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def named(self, file: RemoteFile) -> str:
        """A file as errors name it: `model.safetensors of org/name`."""
        return f"{file.name} of {self.repo}" if self.repo else file.name


def download(source: RemoteSource, file: RemoteFile, part: Path, task: ProgressTask) -> str:
    """Make `part` the whole file, and return its SHA-256.

    Args:
        source: explains the errors of a connection.
        file: the remote file, with size and digest where they are stated.
        part: where it is written; what an earlier attempt has left there is continued.
        task: shows the bytes.

    Raises:
        LuthierError: the connection fails, as `source.explain` describes it; what has arrived is kept. Of class
            `source.failed`: the content has another size or digest than stated; it is deleted.
        StorageFullError: the disk is full.
    """
    part.touch()
    failures, best = 0, 0
    while not _is_whole(file, part, task):
        before, error = part.stat().st_size, None
        try:
            _append(source, file, part, task)
            if file.num_bytes is None:
                break
        except Exception as caught:
            if isinstance(caught, LuthierError) or is_disk_full(caught):
                if file.num_bytes is None:
                    part.write_bytes(b"")  # it cannot be continued, and would keep a full disk full
                raise
            error = caught
        after = part.stat().st_size
        failures = 0 if max(best, before) < after else failures + 1
        best = max(best, after)
        if failures >= _NUM_ATTEMPTS or (error is not None and not source.may_pass(error)):
            failure = _failed(source, file, error, after)
            # An error must not become its own cause: who follows the causes would never end.
            if failure is error:
                raise failure
            raise failure from error
        if failures or error is not None:
            time.sleep(min(2.0**failures, 30.0) / 2)
    digest = sha256_file(part)
    _check(source, file, part, digest, task)
    sync(part)
    return digest


def _is_whole(file: RemoteFile, part: Path, task: ProgressTask) -> bool:
    """Whether the part has the stated size. One that is larger, or cannot be continued, begins again."""
    size = part.stat().st_size
    if size and (file.num_bytes is None or size > file.num_bytes):
        part.write_bytes(b"")
        task.advance(-size)
        size = 0
    return size == file.num_bytes


def _append(source: RemoteSource, file: RemoteFile, part: Path, task: ProgressTask) -> None:
    size = part.stat().st_size
    with file.open_at(size) as (start, chunks), disk_full_explained(part):
        if start != size:
            task.advance(-size)
        # Unbuffered: what has arrived is there for the next process, however this one ends.
        with part.open("ab" if start else "wb", buffering=0) as out:
            num_bytes = start
            for chunk in chunks:
                num_bytes += len(chunk)
                if file.num_bytes is not None and num_bytes > file.num_bytes:
                    task.advance(len(chunk) - num_bytes)
                    out.truncate(0)
                    raise source.failed(
                        f"{source.named(file)}: the server sends more than the {file.num_bytes:,} bytes that it "
                        "stated; nothing is kept",
                        expected="as many bytes as stated: room on the disk was checked for them",
                        do="try again; if it stays, the file is being written to, or the server is faulty",
                    )
                if file.max_bytes is not None and num_bytes > file.max_bytes:
                    out.truncate(0)
                    raise too_large(file.name, None, file.max_bytes)
                out.write(chunk)
                task.advance(len(chunk))


def too_large(name: str, num_bytes: int | None, max_bytes: int) -> DataSourceError:
    """The error for a source beyond the limit on the bytes of one download.

    Args:
        name: Of the source.
        num_bytes: None where it is not stated.
        max_bytes: The limit.
    """
    size = f"more than {max_bytes:,} bytes; nothing is kept" if num_bytes is None else f"{num_bytes:,} bytes"
    return DataSourceError(
        f"{name} has {size}",
        expected=f"at most {max_bytes:,} bytes for one download",
        do="name one file or a smaller split; the operator of the server sets the limit (LUTHIER_MAX_FILE_BYTES)",
    )


def _failed(source: RemoteSource, file: RemoteFile, error: Exception | None, num_bytes: int) -> Exception:
    kept = f"{num_bytes:,} of {file.num_bytes:,} bytes are kept" if file.num_bytes else "nothing is kept"
    if error is None:
        return source.failed(
            f"{source.named(file)}: the server keeps ending early ({kept})",
            expected=f"{file.num_bytes:,} bytes" if file.num_bytes else "the whole file",
            do="try again later: the download continues where it ended",
        )
    return source.explain(error, f"{source.named(file)} ({kept})") or error


def _check(source: RemoteSource, file: RemoteFile, part: Path, digest: str, task: ProgressTask) -> None:
    found = digest if file.git_id is None else git_id(part)
    wanted = file.sha256 or file.git_id
    if wanted is not None and found != wanted:
        size = part.stat().st_size
        part.unlink()
        task.advance(-size)
        raise source.failed(
            f"{source.named(file)} came with digest {found}; it was deleted",
            expected=f"digest {wanted}, as its server states",
            do="try again; if it stays, the server or a mirror in between sends a damaged file",
        )
