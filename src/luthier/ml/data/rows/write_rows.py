"""Write rows as JSONL so that the file is either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import date, time
from pathlib import Path
from typing import IO, Any

from luthier.core.system.files import disk_full_explained, replace_file, sync_file
from luthier.ml.data.files.bad_field import name_of_type


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write each row as `json_line` gives it, atomically, and return the number of rows. Makes missing folders.

    Raises:
        TypeError: a value of a type that JSON does not have.
        ValueError: a number that is infinite or not a number.
        StorageFullError: the disk is full.
    """
    # In the same folder, since a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    num_rows = 0
    try:
        with disk_full_explained(path), _opened(temporary) as file:
            for row in rows:
                file.write(json_line(row) + b"\n")
                num_rows += 1
            # Before the rename: else a power cut could leave the new name with an empty file.
            sync_file(file)
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
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


def _opened(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")
