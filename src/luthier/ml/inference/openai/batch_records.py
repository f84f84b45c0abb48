"""Batches at a provider as this machine records them: their requests, their ids there, which answers are stored.

Requests that the provider has refused for what is in them are recorded, too (`Problems`): another process does not send
them again. What it refuses for the account, such as an unpaid bill, is not recorded: the next start sends it again.

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
from luthier.ml.inference.openai.messages import ACCOUNT_DO, ACCOUNT_EXPECTED, is_about_account, is_overlong

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


_WRONG: Final = (400, 413, 422, None)
"""Statuses of a request that is wrong in itself, unless the account is; None where it never became a request."""


def refusal_of(line: Mapping[str, Any], words: str, url: str) -> tuple[RequestError, bool]:
    """The error of a request that a provider refuses, and whether that is the request's own fault.

    Args:
        line: Of the output or error file of its batch.
        words: The provider's message.
        url: The provider's address.
    """
    response = line.get("response") or {}
    status, body = response.get("status_code"), response.get("body")
    if is_overlong(words):
        came, fits = f"{url} refuses a request of a batch: {words}", "a prompt that fits with its answer"
        return OverlongError(came, expected=fits, do="use shorter passages"), True
    error = line.get("error") or (body.get("error") if isinstance(body, dict) else None)
    marks = [str(error.get(name) or "") for name in ("code", "type")] if isinstance(error, dict) else ["", ""]
    came = f"{url} refuses a request of a batch with {f'HTTP {status}' if status else marks[0]}: {words}"
    if is_about_account(" ".join((words, *marks))):
        return RequestError(came, expected=ACCOUNT_EXPECTED, do=ACCOUNT_DO), False
    expected, do = "a request that this server takes", "see what the server says, and check the model and the options"
    return RequestError(came, expected=expected, do=do), status in _WRONG


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
        """Take the refusals of earlier processes, where nothing newer is known.

        Those for the account, which versions up to 0.1 have recorded, do not count.
        """
        if not self._path.is_file():
            return
        now = time.time()
        for line in self._path.read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the last line of a process that was killed
                one = json.loads(line)
                is_of_account = one["kind"] != "overlong" and is_about_account(one["came"])
                if 0 <= now - one["at"] < _REMEMBERED_SECONDS and not is_of_account:
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
