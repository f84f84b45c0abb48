"""How a file is written to the store of artifacts, whole or not at all, and the error where it cannot be."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from luthier.core.errors import LuthierError, RequestError, StoppedError, StorageFullError, WorkError
from luthier.core.system.extras import install_command
from luthier.core.system.files import is_disk_full, replacing

if TYPE_CHECKING:
    from luthier.core.ports import StopCheck

WRITE_BYTES: Final = 8 << 20
"""How much is held in memory and sent together: S3 takes at most 10,000 pieces of a file, each of at least 5 MiB."""
_DRIVERS: Final = {"gs": "gs", "gcs": "gs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""The extra that brings the driver of a protocol; `s3` for all others."""
_AZURE_VARIABLES: Final = (
    "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, "
    "AZURE_STORAGE_SAS_TOKEN or `az login`"
)


def open_root(
    root: str, *, what: str = "artifacts", setting: str = "LUTHIER_ARTIFACTS or --artifacts"
) -> tuple[Any, str]:
    """The file system of fsspec that a root names, and the place in it.

    Args:
        root: A folder or a URL.
        what: What is there, for errors.
        setting: What names the root, for errors.

    Raises:
        RequestError: there is none.
    """
    from fsspec.core import url_to_fs

    protocol = root.partition("://")[0]  # the rest may hold a password
    try:
        # No caches: other processes write to the same place, and what they wrote must be seen.
        files, place = url_to_fs(root, use_listings_cache=False, skip_instance_cache=True)
        return files, str(place)
    except ImportError as error:
        raise RequestError(
            f"the driver for {what} at {protocol}:// is not installed",
            expected="the driver of fsspec for that store",
            do=f"{install_command(_DRIVERS.get(protocol, 's3'))}, or name a place of this machine",
        ) from error
    except ValueError as error:
        if _DRIVERS.get(protocol) == "azure":  # its driver looks for the account when it is made
            raise RequestError(
                f"{what} at {protocol}:// without an account of Azure Storage",
                expected="an account, and a key or an identity that may use it",
                do=f"set {_AZURE_VARIABLES}, or name the account: abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER",
            ) from error
        raise RequestError(
            f"{what} at {protocol}:// cannot be reached by any driver that is known",
            expected="a folder, or a URL such as s3://bucket/folder",
            do=f"correct {setting}",
        ) from error


def copy_local(source: Path, final: Path) -> None:
    """Copy a file to `final`, which appears when all of it is on the disk.

    Raises:
        StorageFullError: The disk has no room for it.
    """
    with replacing(final) as writer, source.open("rb") as reader:
        shutil.copyfileobj(reader, writer)


class ArtifactReader:
    """The content of an artifact as a stream; use it in a `with` block."""

    def __init__(self, file: Any, name: str, *, is_local: bool) -> None:
        self._file, self._name, self._is_local = file, name, is_local

    def read(self, num_bytes: int) -> bytes:
        """The next bytes; none at the end.

        Raises:
            WorkError: a store elsewhere fails meanwhile.
        """
        try:
            with errors_explained(self._name, is_local=self._is_local):
                return bytes(self._file.read(num_bytes))
        except FileNotFoundError as error:
            # The file was there when it was opened: now that means the store has lost it.
            raise _failed(self._name, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def copy_to(files: Any, source: Path, place: str, name: str, *, stop_requested: StopCheck = lambda: None) -> None:
    """Send a file to a file system of fsspec, a piece at a time, in constant memory.

    Args:
        files: The file system.
        source: The local file.
        place: Where it goes.
        name: The store, for messages.
        stop_requested: Called before each piece.

    Raises:
        StorageFullError: The store has no room.
        WorkError: The store does not answer or refuses.
        StoppedError: It was to stop; the file is not there, or a part of it.
    """
    try:
        with errors_explained(name, is_local=False):
            _copy_to(files, source, place, stop_requested)
    except FileNotFoundError as error:  # no such bucket
        raise _failed(name, error) from error


def _copy_to(files: Any, source: Path, place: str, stop_requested: StopCheck) -> None:
    # On S3 a multipart upload: the object appears when close() completes it.
    writer = files.open(place, "wb", block_size=WRITE_BYTES)
    try:
        with source.open("rb") as reader:
            while block := reader.read(WRITE_BYTES):
                if (reason := stop_requested()) is not None:
                    raise StoppedError(reason)
                writer.write(block)
        writer.close()
    except BaseException:
        with contextlib.suppress(Exception):  # what has failed once may fail here too; the first error is reported
            writer.discard()
        try:
            writer.closed = True  # or else the collector would end the file as if it were whole
        except AttributeError:  # a file of this machine: it has what was written, and no such mark
            with contextlib.suppress(OSError):
                writer.close()
        raise


@contextmanager
def errors_explained(name: str, *, is_local: bool) -> Iterator[None]:
    """Say what a store elsewhere did, by the kind of its error alone: its words may hold an address or a key.

    FileNotFoundError passes, those who read know what it means.

    Raises:
        StorageFullError: the store has no room.
        WorkError: the store failed in another way.
    """
    try:
        yield
    except (FileNotFoundError, LuthierError, StoppedError):
        raise
    except OSError as error:
        if is_disk_full(error):
            raise StorageFullError(
                f"no room for artifacts at {name}", expected="free space", do="free some, then try again"
            ) from error
        if is_local:
            raise
        raise _failed(name, error) from error
    except Exception as error:
        if is_local:
            raise
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> WorkError:
    return WorkError(
        f"the store of artifacts {name} failed: {_kind(error)}",
        expected="a store that answers, a bucket that is there, and a key that may read and write it",
        do=f"check the URL, {access_variables(name)} in the environment of this process; nothing was lost of what was "
        "kept before",
    )


def access_variables(url: str) -> str:
    """What decides how a store is reached, as text that follows "check": variables that its driver reads."""
    if url.startswith(("gs://", "gcs://")):
        return "and the credentials (GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`)"
    if _DRIVERS.get(url.partition("://")[0]) == "azure":
        return f"and the account with its credentials ({_AZURE_VARIABLES})"
    return "the endpoint (AWS_ENDPOINT_URL) and the credentials"


def _kind(error: BaseException) -> str:
    """The error's kind and, where the store has answered, the code of its answer."""
    cause: BaseException | None = error
    while cause is not None:
        # botocore's ClientError keeps the parsed answer there.
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict) and isinstance(answer.get("Error"), dict):
            return f"{type(error).__name__} ({answer['Error'].get('Code', 'no code')})"
        cause = cause.__cause__
    return type(error).__name__
