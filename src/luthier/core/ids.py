"""Identifiers: sortable ids of what is made, and SHA-256 digests of content.

An id is short, sorts by time and is safe in paths and URLs. A digest names bytes, a file or a JSON document, so that
it is known to be unchanged.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from luthier.core.json_limits import json_utf8

_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
# The column has 255; checkpoints have `:ckpt-step-` and a number behind the name.
_MAX_NAME_CHARACTERS = 230
_CHECKPOINT = re.compile(r":ckpt-step-[0-9]+\Z")


_TICKS: Final = 1 << 24
"""Parts of a second that the last six digits of an id count."""
_RANDOM_BITS: Final = 10
_last_lock = threading.Lock()
_last_ticks = 0


def new_id(kind: str) -> str:
    """A new id such as `run-20261125-093000-1f2e3d`: kind, UTC time to the second, part of the second in hex digits.

    Ids of one process sort in the order in which they were made, and ids of several in that of their times to 0.06 ms.
    """
    global _last_ticks
    with _last_lock:
        # The random bits distinguish ids of several processes; stores that must be sure also check for duplicates.
        now = (time.time_ns() * _TICKS // 10**9) >> _RANDOM_BITS << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
        # Only as long as ids are made faster than the clock counts: after it was set back, its time is the right one.
        _last_ticks = ticks = _last_ticks + 1 if 0 <= _last_ticks - now < _TICKS else now
    second, part = divmod(ticks, _TICKS)
    return f"{kind}-{datetime.fromtimestamp(second, UTC):%Y%m%d-%H%M%S}-{part:06x}"


def is_id(text: str, kind: str) -> bool:
    """Whether `text` has the form of an id of this kind. Anything else must never become part of a path."""
    return text.startswith(f"{kind}-") and _ID.fullmatch(text) is not None


def is_trained_name(name: str) -> bool:
    """Whether it is the name of what training has made: of a run, or of a tuned model or checkpoint (`ft:...`)."""
    return is_id(name, "run") or name.startswith("ft:")


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def fitted(text: str, max_characters: int) -> str:
    """The text; of a longer one its beginning and a part of its digest, so that different texts stay different."""
    if len(text) <= max_characters:
        return text
    digest = sha256_bytes(text.encode("utf-8", "surrogatepass"))[:12]
    return f"{text[: max_characters - len(digest) - 1]}-{digest}"


def tuned_name(base_model: str, project_id: str, suffix: str, made_by: str) -> str:
    """The name of a tuned model: `ft:BASE:PROJECT:SUFFIX:ID`.

    Args:
        base_model: its name, or a folder; of a long one the beginning, so that the whole name fits its column.
        project_id: whose it is.
        suffix: as it is asked for, at most 100 characters.
        made_by: what makes it, such as the id of a job. It is hashed: names are shown to clients, and should not reveal
            when it was made.
    """
    rest = f":{project_id}:{suffix}:{sha256_bytes(made_by.encode())[:10]}"
    return f"ft:{fitted(base_model, _MAX_NAME_CHARACTERS - len(rest))}{rest}"


def project_of_tuned_name(name: str) -> str | None:
    """The project in the name of a tuned model or of a checkpoint of it; None where the name has another form.

    It is read from the end: the name of a base model may have colons, too, as `hub:ORGANISATION/NAME` has.
    """
    parts = _CHECKPOINT.sub("", name).rsplit(":", 3)
    return parts[1] if name.startswith("ft:") and len(parts) == 4 else None


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in blocks (constant memory)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(document: Any) -> str:
    """JSON with sorted keys and no spaces, which UTF-8 can hold: equal documents give equal text."""
    return _canonical(document).decode()


def sha256_document(document: Any) -> str:
    """Hex digest of a JSON document, independent of the order of its keys."""
    return sha256_bytes(_canonical(document))


def _canonical(document: Any) -> bytes:
    # allow_nan=False: NaN is not JSON, and never equal to itself, so a document with it has no digest.
    return json_utf8(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
