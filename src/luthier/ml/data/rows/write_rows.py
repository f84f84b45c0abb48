"""Write rows as JSONL so that the file is either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from luthier.core.system.disk_full import disk_full_explained


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write one JSON object a line (UTF-8), atomically, and return the number of rows. Makes missing folders.

    Raises:
        StorageFullError: the disk is full.
    """
    # In the same folder, since a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    num_rows = 0
    try:
        with disk_full_explained(path), _opened(temporary) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                num_rows += 1
            file.flush()
            # Before the rename: else a power cut could leave the new name with an empty file.
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


def _opened(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n")
