"""Batches at a provider as this machine records them: their requests, their ids there, which answers are stored.

Requests that the provider has refused are recorded, too (`Problems`): another process does not send them again.

Each batch has files of one name in a folder: `NAME.jsonl` with its requests, written before it is made; `NAME.json`
with its ids, written after; `NAME.taken` with the requests whose answers are stored. NAME ends with its round, such as
`-2`: the number of batches that its requests have been in.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import LuthierError, OverlongError, RequestError
from luthier.core.system.files import disk_full_explained, replace_file, sync

_TAKEN: Final = ".taken"


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch of requests.

    Attributes:
        name: Names it here and in its metadata.
        endpoint: What they ask, such as `/v1/chat/completions`.
        requests: The file of its requests.
        batch_id: The provider's id; empty before it is made.
        file_id: The provider's id of the uploaded file.
    """

    name: str
    endpoint: str
    requests: Path
    batch_id: str = ""
    file_id: str = ""

    @property
    def round(self) -> int:
        """The number of batches that its requests have been in, this one included."""
        return int(self.name.partition("-")[2] or 1)


def write_requests(folder: Path, endpoint: str, lines: Sequence[bytes], number: int) -> BatchRecord:
    """The file of requests of a batch that is to be made.

    Args:
        folder: Of all batches.
        endpoint: What the requests ask.
        lines: The requests, each with its end of line.
        number: Of batches that they have been in, this one included.
    """
    name = f"{uuid.uuid4().hex}-{number}"
    place = folder / f"{name}.jsonl"
    _write(place, b"".join(lines))
    return BatchRecord(name, endpoint, place)


def write_record(one: BatchRecord, batch_id: str, file_id: str, *, url: str, model: str) -> BatchRecord:
    """Store the provider's ids of a batch."""
    document = {"batch_id": batch_id, "file_id": file_id, "url": url, "model": model}
    _write(one.requests.with_suffix(".json"), json.dumps(document).encode())
    return replace(one, batch_id=batch_id, file_id=file_id)


def recorded(folder: Path) -> Iterator[tuple[BatchRecord, list[dict[str, Any]]]]:
    """All batches with their requests; those without ids may have been made, or not."""
    for place in sorted(folder.glob("*.jsonl")):
        try:
            requests = list(requests_in(place))
        except FileNotFoundError:  # a process that asks another model has taken its last answer meanwhile
            continue
        one, ids = BatchRecord(place.stem, requests[0]["url"], place), place.with_suffix(".json")
        with suppress(FileNotFoundError):
            known = json.loads(ids.read_text(encoding="utf-8"))
            one = replace(one, batch_id=known["batch_id"], file_id=known["file_id"])
        yield one, requests


def requests_in(place: Path) -> Iterator[dict[str, Any]]:
    """The requests of a file."""
    with place.open("rb") as file:
        for line in file:
            yield json.loads(line)


def limit_of(body: Mapping[str, Any]) -> int:
    """The most tokens of the answer to a request."""
    return int(body.get("max_tokens") or body["max_completion_tokens"])


def counts_of(batch: Mapping[str, Any], total: int = 0) -> tuple[int, int]:
    """The requests of a batch that are done, and all of them.

    Args:
        batch: As the provider describes it.
        total: All of them, until the provider has counted them.
    """
    counts = batch.get("request_counts") or {}
    return int(counts.get("completed") or 0) + int(counts.get("failed") or 0), int(counts.get("total") or total)


_REMEMBERED_SECONDS: Final = 30 * 24 * 3600.0
"""How long a refusal is remembered: a provider may take tomorrow what it refuses today."""


class Problems(dict[str, LuthierError]):
    """Why requests have no answer, by their ids. Refusals are remembered in a file for later processes.

    Args:
        path: The file; its folder may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load(self) -> None:
        """Take the refusals of earlier processes, where nothing newer is known."""
        if not self._path.is_file():
            return
        now = time.time()
        for line in self._path.read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the last line of a process that was killed
                one = json.loads(line)
                if 0 <= now - one["at"] < _REMEMBERED_SECONDS:
                    self.setdefault(one["custom_id"], self._as_error(one))

    def refuse(self, request_id: str, error: RequestError) -> None:
        """A request that the provider will refuse again: it is not sent any more."""
        self[request_id] = error
        kind = "overlong" if isinstance(error, OverlongError) else "request"
        document = {"custom_id": request_id, "at": time.time(), "kind": kind, "came": error.came}
        line = json.dumps(document | {"expected": error.expected, "do": error.do}).encode() + b"\n"
        # Not synced: of a batch all 50,000 requests may be refused, and what is lost with the power is sent once more.
        with disk_full_explained(self._path), self._path.open("ab") as file:
            file.write(line)

    def _as_error(self, one: Mapping[str, Any]) -> RequestError:
        at, until = (
            time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
            for seconds in (one["at"], one["at"] + _REMEMBERED_SECONDS)
        )
        kind = OverlongError if one["kind"] == "overlong" else RequestError
        do = f"{one['do']}; to send it again before {until}, remove {self._path}"
        return kind(f"{one['came']} (refused at {at}, and not sent again)", expected=one["expected"], do=do)


def taken_file(one: BatchRecord) -> Path:
    """The file that lists the requests whose answers are stored."""
    return one.requests.with_suffix(_TAKEN)


def remove(one: BatchRecord) -> None:
    """Remove all files of a batch."""
    for suffix in (".jsonl", ".json", _TAKEN):
        one.requests.with_suffix(suffix).unlink(missing_ok=True)


def _write(place: Path, content: bytes) -> None:
    partial = place.with_suffix(".partial")
    with disk_full_explained(place):
        partial.write_bytes(content)
        sync(partial)
        replace_file(partial, place)
