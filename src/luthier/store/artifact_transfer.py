"""How a file gets to where artifacts lie, whole or not at all, and what is said where it cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import LuthierError, RequestError, StorageFullError, WorkError

WRITE_BYTES: Final = 16 << 20
"""How much is held in memory and sent at once: S3 takes at most 10,000 pieces of a file, each of at least 5 MiB."""


def copy_local(source: Path, final: Path) -> None:
    """Copy a file to `final`, which appears when all of it is on the disk."""
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    try:
        with source.open("rb") as reader, partial.open("xb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def copy_to(files: Any, source: Path, place: str) -> None:
    """Send a file to a file system of fsspec, a piece at a time, in constant memory."""
    writer = files.open(place, "wb", block_size=WRITE_BYTES)
    try:
        with source.open("rb") as reader:
            shutil.copyfileobj(reader, writer, WRITE_BYTES)
        writer.close()
    except BaseException:
        with contextlib.suppress(Exception):  # what has failed once may fail here too; the first error is the one told
            writer.discard()
        writer.closed = True  # or else the collector would end the file as if it were whole
        raise


@contextmanager
def errors_explained(name: str, *, is_local: bool) -> Iterator[None]:
    """Say what a store elsewhere did, by the kind of its error alone: its words may hold an address or a key.

    FileNotFoundError passes, the callers know what it means.
    """
    try:
        yield
    except (FileNotFoundError, LuthierError):
        raise
    except ImportError as error:
        raise RequestError(
            f"the artifacts at {name}:// need the package {error.name or 'of that protocol'}, which is not installed",
            expected="Luthier installed with its driver for object storage",
            do="pip install 'luthier[s3]', or name a folder",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"no room for artifacts at {name}", expected="free space", do="free some, then try again"
            ) from error
        if is_local:
            raise
        raise _unreachable(name, error) from error
    except Exception as error:
        if is_local:
            raise
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> WorkError:
    return WorkError(
        f"the store of artifacts {name} failed: {_kind(error)}",
        expected="a store that answers, a bucket that is there, and a key that may read and write it",
        do="check the URL, the endpoint (AWS_ENDPOINT_URL) and the credentials in the environment of this process; "
        "nothing was lost of what was kept before",
    )


def _kind(error: BaseException) -> str:
    """The error's kind and, where the store has answered, the code of its answer."""
    cause: BaseException | None = error
    while cause is not None:
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict) and isinstance(answer.get("Error"), dict):
            return f"{type(error).__name__} ({answer['Error'].get('Code', 'no code')})"
        cause = cause.__cause__
    return type(error).__name__
