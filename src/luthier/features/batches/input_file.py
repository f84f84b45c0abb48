"""The input file of a batch: its lines, the request of each, and the models that they name."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from luthier.core.json_limits import fault_of_text

MAX_LINE_BYTES: Final = 4 << 20


def lines_of(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The lines of the input that are not blank, each with its number from 1 on; None for one that is too long.

    A byte order mark, as editors on Windows write it, is no part of the first line.
    """
    with path.open("rb") as file:
        number = 0
        if file.read(len(BOM_UTF8)) != BOM_UTF8:
            file.seek(0)
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                    pass
                yield number, None
            elif line.strip():
                yield number, line


def document_of(line: bytes | None) -> dict[str, Any] | str:
    """The object of a line; for a line that has none, why."""
    if line is None:
        return f"longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        text = line.decode()
        if (fault := fault_of_text(text)) is not None:
            return f"{fault.came}; expected: {fault.expected}"
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({str(error)[:100]})"
    return found if isinstance(found, dict) else f"{type(found).__name__}; expected: an object"


def model_of(document: Mapping[str, Any]) -> str | None:
    """The model that a request names; None where it names none."""
    body = document.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


def models_of_file(path: Path) -> Iterator[str]:
    """The models that the requests of a file name, each once."""
    seen = set[str]()
    for _, line in lines_of(path):
        document = document_of(line)
        model = None if isinstance(document, str) else model_of(document)
        if model is not None and model not in seen:
            seen.add(model)
            yield model
