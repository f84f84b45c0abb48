"""Files that are written together: never over something in silence, and each whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, time
from pathlib import Path
from typing import Any

from luthier.core.errors import ConflictError, RequestError
from luthier.core.ids import sha256_file
from luthier.core.system.files import disk_full_explained, replace_bytes, replace_file, replacing, scratch_folder, sync
from luthier.ml.data.files.bad_field import name_of_type


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write each row as `json_line` gives it, atomically, and return the number of rows. Makes missing folders.

    Raises:
        TypeError: a value of a type that JSON does not have.
        ValueError: a number that is infinite or not a number.
        StorageFullError: the disk is full.
    """
    num_rows = 0
    with disk_full_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for row in rows:
            file.write(json_line(row) + b"\n")
            num_rows += 1
    return num_rows


def json_line(fields: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON without its end: UTF-8, fields in their order; dates and times as ISO 8601 texts.

    Raises:
        TypeError: a value of a type that JSON does not have.
        ValueError: a number that is infinite or not a number.
    """
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_iso)
    try:
        return text.encode()
    # Half of a surrogate pair can only be written as an escape. Not by `json_utf8`, which leaves the rest unchanged:
    # files are known by their digests, and such lines have always been written in ASCII.
    except UnicodeEncodeError:
        return json.dumps(fields, allow_nan=False, default=_iso).encode()


def _iso(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"{name_of_type(value)} ({type(value).__name__}) is not a JSON value")


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Check that no output is a folder, or one of the files that are read.

    Raises:
        RequestError: an output is a folder, or an input (also through a link).
    """
    for output in outputs:
        if output.is_dir():
            raise RequestError(f"{output} is a folder", expected="the name of a file", do="name a file in it")
        for path in inputs:
            if output.exists() and path.exists() and output.samefile(path):
                raise RequestError(
                    f"{output} is the file that is read" + ("" if output == path else f", {path}"),
                    expected="another output file: the original is not changed",
                    do="choose another name for the output",
                )


def check_free(outputs: Sequence[Path], *, force: bool) -> None:
    """Check that outputs may be written.

    Raises:
        ConflictError: an output exists already, and `force` is not set.
    """
    for output in outputs:
        # lexists, not exists: a dangling link would be replaced in silence as well.
        if not force and os.path.lexists(output):
            raise ConflictError(
                f"{output} already exists",
                expected="a name that is free",
                do="choose another name, or replace it with --force",
            )


def check_free_listed(output: Path, listed: Path, *, force: bool) -> None:
    """`check_free` for an output and the listing of what was refused, which the next attempt replaces.

    Args:
        output: the file to be written.
        listed: JSONL with `source_row` and `reason`; a file by that name that holds something else is not replaced.
        force: replace both.

    Raises:
        ConflictError: a file exists already and may not be replaced.
    """
    check_free([output] if _is_listing(listed) else [output, listed], force=force)


def _is_listing(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(1 << 20))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"source_row", "reason"} <= first.keys()


def check_replaceable(path: Path, what: str, *prefixes: bytes) -> None:
    """Check that a file is absent, empty, or of the kind that is about to replace it.

    A page or a chart that is written again replaces the one before; a file of rows by the same name stays.

    Args:
        path: the file to be written.
        what: its kind, for the message.
        prefixes: how files of that kind begin, in lower case.

    Raises:
        ConflictError: another kind of file has that name.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head and not head.startswith(prefixes):
        raise ConflictError(
            f"{path} already exists, and is not a {what}",
            expected=f"a name that is free, or a {what} to replace",
            do="choose another name, or move that file away",
        )


def write_output(path: Path, content: bytes, *, force: bool) -> None:
    """Write a small file, whole or not at all.

    Raises:
        ConflictError: it exists already, and `force` is not set.
        RequestError: it is a folder, or cannot be written.
    """
    check_outputs([path], [])
    check_free([path], force=force)
    try:
        replace_bytes(path, content)
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written: {error.strerror}", expected="a folder that is there", do="choose another file"
        ) from error


@contextmanager
def working_folder(beside: Path) -> Iterator[Path]:
    """A folder next to `beside` for files in the making, on the same disk, so that they can be moved into place.

    It is deleted afterwards in every case.

    Raises:
        StorageFullError: the disk runs full inside.
    """
    with disk_full_explained(beside, expected="room for the output twice"):
        beside.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(beside.parent, f".{beside.name}.making-") as folder:
            yield folder


def publish(files: Mapping[Path, Path], *, force: bool) -> None:
    """Move finished files into place, in the order given (made -> final), each of them atomically.

    A final file that is there already with the same bytes is what a run that was stopped here has left, and is kept.

    Raises:
        ConflictError: one with other bytes, unless `force`; nothing was moved then.
    """
    # A file with the same bytes is what an interrupted run has left: the next run completes it without --force.
    for made, final in files.items():
        if not force and os.path.lexists(final) and not _is_same(made, final):
            check_free([final], force=False)
    for made in files:  # all of them first: a disk that turns out to be full must not leave one without the others
        sync(made)
    for made, final in files.items():
        replace_file(made, final)


def _is_same(made: Path, final: Path) -> bool:
    return final.is_file() and sha256_file(made) == sha256_file(final)
