"""Files that are written together: never over something in silence, and each whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from luthier.core.digest import sha256_file
from luthier.core.errors import ConflictError, RequestError
from luthier.core.scratch_folders import scratch_folder


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise RequestError where an output is a file that is read (also through a link), or is a folder."""
    for output in outputs:
        if output.is_dir():
            raise RequestError(f"{output} is a folder", expected="the name of a file", do="name a file in it")
        for path in inputs:
            if output.exists() and path.exists() and output.samefile(path):
                raise RequestError(
                    f"{output} is the file that is read" + ("" if output == path else f", {path}"),
                    expected="an output beside it: the original stays as it is",
                    do="choose another name for the output",
                )


def check_free(outputs: Sequence[Path], *, force: bool) -> None:
    """Raise ConflictError where an output is there already and may not be replaced."""
    for output in outputs:
        if not force and os.path.lexists(output):
            raise ConflictError(
                f"{output} is there already",
                expected="a name that is free",
                do="choose another name, or replace it with --force",
            )


@contextmanager
def working_folder(beside: Path) -> Iterator[Path]:
    """A folder next to `beside` for files in the making, on the same disk, so that they can be moved into place."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(beside.parent, f".{beside.name}.making-") as folder:
        yield folder


def publish(files: Mapping[Path, Path], *, force: bool) -> None:
    """Move finished files into place, in the order given (made -> final), each of them atomically.

    A final file that is there already with the same bytes is what a run that was stopped here has left, and is kept.
    Raises ConflictError for one with other bytes, unless `force`; nothing was moved then.
    """
    for made, final in files.items():
        if not force and os.path.lexists(final) and not _is_same(made, final):
            check_free([final], force=False)
    for made, final in files.items():
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(final)


def _is_same(made: Path, final: Path) -> bool:
    return final.is_file() and sha256_file(made) == sha256_file(final)
