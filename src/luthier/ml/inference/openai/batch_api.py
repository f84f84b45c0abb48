"""Inference through OpenAI's Batch API: files of requests, answered within a day, at some providers for half the price.

The first prompt is sent as an ordinary request: a wrong key, model or parameter shows before a file is uploaded. The
file of requests is stored in a folder before its batch is made, under a name that is in the metadata of the batch, too.
So work that was killed finds its batches again, fetches what they have answered, and pays for nothing twice.

API reference of OpenAI: "Batch", "Files". Its limits: 50,000 requests and 200 MB a file.
"""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import httpx2

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import ConflictError, OverlongError, RequestError, StillRunningError, WorkError
from luthier.core.ids import sha256_document
from luthier.core.ports import Generation, Progress, ProgressTask, Prompt, Score, SilentProgress
from luthier.core.system.files import disk_full_explained, file_lock
from luthier.ml.inference.engine_wrappers import Keep, is_passing, pause_seconds
from luthier.ml.inference.openai.batch_records import (
    BatchRecord,
    Problems,
    counts_of,
    limit_of,
    recorded,
    refusal_of,
    remove,
    requests_in,
    taken_file,
    write_record,
    write_requests,
)
from luthier.ml.inference.openai.http import NUM_ATTEMPTS, OpenAIHttpEngine
from luthier.ml.inference.openai.messages import (
    auth_headers,
    error_of,
    generation_of,
    message_in,
    server_words,
    without_key,
)

MAX_REQUESTS: Final = 50_000
MAX_BYTES: Final = 200_000_000
_LABEL: Final = "luthier"
"""The key of the metadata that names a batch."""
_ROUNDS: Final = 3
"""Batches in which a request may be before it counts as failed: some expire, or meet a busy server."""
_ENDED: Final = ("completed", "failed", "expired", "cancelled")
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS, _SECONDS, _LOCK_SECONDS = 5.0, 60.0, 300.0, 1.0


class OpenAIBatchEngine:
    """A model behind a server with OpenAI's Batch API; what it cannot answer there it asks for as `live` does.

    Args:
        live: The same model by ordinary requests; closed together with this engine.
        folder: Where batches are recorded until their answers are stored.
        api_key: Sent as a bearer token; never shown.
        keep: Called with each answer as it comes.
        cost_of: US dollars for tokens of prompts and of answers, shown before a file is uploaded; None for no price.
        look_seconds: Between two looks at a batch; None looks after 5 seconds first, then less often, up to a minute.
        first_pause_seconds: Before a request that has failed is repeated; doubled with each further one.
        waits: Whether a call waits until its batches have ended. Otherwise it raises StillRunningError once they are
            made, or found not to have ended; a later call takes their answers.
    """

    def __init__(
        self,
        live: OpenAIHttpEngine,
        folder: Path,
        *,
        api_key: str | None = None,
        keep: Keep = lambda *_: None,
        cost_of: Callable[[int, int], float | None] = lambda *_: None,
        look_seconds: float | None = None,
        first_pause_seconds: float = 0.5,
        waits: bool = True,
    ) -> None:
        self._waits = waits
        self._live, self._folder, self._keep, self._cost_of = live, folder, keep, cost_of
        self._url, self._model, self._key = live.url, live.model, (api_key or "").strip()
        self._look_seconds, self._first_pause = look_seconds, first_pause_seconds
        self._lock_name = sha256_document([self._url, self._model])[:16]
        # Of all calls and processes: a prompt that was refused once is not sent again.
        self._problems = Problems(folder / f".{self._lock_name}.refused")
        self._rounds: dict[str, int] = {}  # of a request: the number of batches that it was in
        self._asked: Path | None = None  # the requests of the batch that is waited for
        self._client = httpx2.Client(headers=auth_headers(self._key), timeout=_SECONDS)
        # Waited on instead of `sleep`, so that a signal ends every pause.
        self._never = threading.Event()

    @property
    def name(self) -> str:
        """`openai_batch`, for people."""
        return "openai_batch"

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation a prompt, in order; blocks until the batches have ended, up to a day each.

        Raises:
            NotFoundError: No such model, or the address has no Batch API.
            OverlongError: A prompt exceeds the context; all others are answered before that.
            RequestError: The server refuses a request, or the whole file.
            WorkError: The server cannot be reached, or a request has no answer after three batches.
            ConflictError: Another process has prompts answered by this model so, and the call waits for its batches.
            StillRunningError: The batches continue, or another process asks this model so, and the call does not wait.
        """
        if not prompts:
            return []
        self._folder.mkdir(parents=True, exist_ok=True)
        what, lock = f"the Batch API of {self._url}", self._folder / f".{self._lock_name}.lock"
        with ExitStack() as held:
            try:
                held.enter_context(file_lock(lock, what=what, timeout_seconds=_LOCK_SECONDS))
            except ConflictError as error:
                if self._waits:  # a command with --batch may hold it for a day
                    raise
                raise StillRunningError(f"another process that uses {what}", num_done=0, num_total=0) from error
            return self._generated(prompts, progress)

    def _generated(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        self._problems.load()
        found: dict[int, Generation] = {}
        places: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            places.setdefault(self._id(prompt, number), []).append(number)
        with progress.task("Answering by the Batch API", len(prompts), "answers") as task:

            def take(request_id: str, made: Generation) -> None:
                for number in places.get(request_id, ()):
                    if number not in found:
                        found[number] = made
                        self._keep(prompts[number], made)
                        task.advance()

            # Batches of an earlier process first: what they have answered is paid for.
            running: dict[str, tuple[int, int]] = {}
            open_names: set[str] = set()
            for one in self._recorded(places.keys()):
                if (counts := self._fetch(one, places.keys(), take, task)) is not None:
                    running[one.batch_id] = counts
                    open_names |= {str(request["custom_id"]) for request in requests_in(one.requests)}
            rest = {name: numbers for name, numbers in places.items() if name not in open_names}
            running |= self._answer_rest(prompts, rest, found, take, task)
        if running:
            done, total = (sum(counts) for counts in zip(*running.values(), strict=True))
            raise StillRunningError(f"{', '.join(running)} of {self._url}", num_done=done, num_total=total)
        errors = [self._problems[name] for name, numbers in places.items() if numbers[0] not in found]
        if errors:
            # Of others that fail the caller learns first: prompts over the context can be left out.
            raise min(errors, key=lambda error: isinstance(error, OverlongError))
        return [found[number] for number in range(len(prompts))]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        """No likelihoods: this API gives none of given texts.

        Raises:
            RequestError: Always.
        """
        return self._live.score(examples, progress)

    def close(self) -> None:
        """Close the connections. Batches continue at the provider."""
        self._client.close()
        self._live.close()

    def _answer_rest(
        self,
        prompts: Sequence[Prompt],
        places: Mapping[str, list[int]],
        found: Mapping[int, Generation],
        take: Callable[[str, Generation], None],
        task: ProgressTask,
    ) -> dict[str, tuple[int, int]]:
        """Make batches of what has no answer, as long as that may help; those that have not ended, as `_fetch`."""

        def left() -> dict[str, Prompt]:
            return {
                name: prompts[numbers[0]]
                for name, numbers in places.items()
                if numbers[0] not in found
                and not isinstance(self._problems.get(name), OverlongError | RequestError)
                and self._rounds.get(name, 0) < _ROUNDS
            }

        if first := left():
            name, prompt = next(iter(first.items()))
            try:
                (made,) = self._live.generate([prompt], SilentProgress())
            except OverlongError as error:
                self._problems.refuse(name, error)
            else:
                take(name, made)
                num_prompt, num_new = len(first) * made.num_prompt_tokens, len(first) * made.num_new_tokens
                cost = self._cost_of(num_prompt, num_new)
                in_usd = "" if cost is None else f", {cost:.2f} USD"
                task.note(f"{len(first):,} requests, about {num_prompt:,} + {num_new:,} tokens{in_usd}")
        while wanted := left():
            made_now = [self._made(one) for one in self._written(wanted)]
            looked = {one.batch_id: self._fetch(one, places.keys(), take, task) for one in made_now}
            if running := {name: counts for name, counts in looked.items() if counts is not None}:
                return running
        for name, numbers in places.items():
            if numbers[0] not in found:
                self._problems.setdefault(name, self._lost(name, "it was in none of the files of its batch"))
        return {}

    def _id(self, prompt: Prompt, number: int) -> str:
        """Names a request by all that decides its answer, but for how the server calls the limit."""
        path, body, limit = self._live.request_of(prompt, number)
        return sha256_document([self._url, path, body, limit])[:32]

    def _written(self, wanted: Mapping[str, Prompt]) -> list[BatchRecord]:
        """The files of requests, within the limits of the API: each endpoint has its own files."""
        # By endpoint and round: a file of several rounds could not say how often its requests have been sent.
        parts: dict[tuple[str, int], list[list[bytes]]] = {}
        sizes: dict[tuple[str, int], int] = {}
        for name, prompt in wanted.items():
            path, body = self._live.sent(prompt)
            key = f"/v1/{path}", self._rounds.get(name, 0) + 1
            line = json.dumps({"custom_id": name, "method": "POST", "url": key[0], "body": body}).encode() + b"\n"
            own = parts.setdefault(key, [[]])
            is_full = len(own[-1]) >= MAX_REQUESTS or sizes.get(key, 0) + len(line) > MAX_BYTES
            if own[-1] and is_full:
                own.append([])
                sizes[key] = 0
            own[-1].append(line)
            sizes[key] = sizes.get(key, 0) + len(line)
        return [
            write_requests(self._folder, endpoint, lines, number)
            for (endpoint, number), lists in parts.items()
            for lines in lists
        ]

    def _recorded(self, wanted: Collection[str]) -> Iterator[BatchRecord]:
        """The batches of earlier processes that hold one of these requests."""
        for one, requests in list(recorded(self._folder)):
            if not any(request["custom_id"] in wanted for request in requests):
                continue
            if one.batch_id:
                yield one
            elif (made := self._listed(one)) is not None:
                yield self._record(one, made)
            else:
                # The process ended before its batch was made: what it holds is part of the next one.
                remove(one)

    def _made(self, one: BatchRecord) -> BatchRecord:
        """The batch at the provider, made once, and recorded here."""
        with one.requests.open("rb") as file:
            upload = self._call("POST", "files", data={"purpose": "batch"}, files={"file": (f"{one.name}.jsonl", file)})
        asked = {
            "input_file_id": upload["id"],
            "endpoint": one.endpoint,
            "completion_window": "24h",
            "metadata": {_LABEL: one.name},
        }
        made = self._call("POST", "batches", json=asked, found=lambda: self._listed(one))
        return self._record(one, made)

    def _listed(self, one: BatchRecord) -> Mapping[str, Any] | None:
        """A batch at the provider by its name; None where it was not made."""
        after: dict[str, str] = {}
        while True:
            page = self._call("GET", "batches", params={"limit": "100", **after})
            for batch in page.get("data") or ():
                if (batch.get("metadata") or {}).get(_LABEL) == one.name:
                    return dict(batch)
            if not page.get("has_more") or not page.get("data"):
                return None
            after = {"after": page["data"][-1]["id"]}

    def _record(self, one: BatchRecord, batch: Mapping[str, Any]) -> BatchRecord:
        file_id = str(batch.get("input_file_id") or "")
        return write_record(one, str(batch["id"]), file_id, url=self._url, model=self._model)

    def _fetch(
        self,
        one: BatchRecord,
        wanted: Collection[str],
        take: Callable[[str, Generation], None],
        task: ProgressTask,
    ) -> tuple[int, int] | None:
        """Wait for a batch, take its answers, and forget it where all of them were taken, here or before a kill.

        Returns:
            Of a batch that has not ended and is not waited for: its requests that are done, and all; else None.
        """
        self._asked = one.requests
        batch = self._ended(one, task)
        if batch["status"] not in _ENDED:
            return counts_of(batch, sum(1 for _ in requests_in(one.requests)))
        if batch["status"] == "failed":
            self._forget(one, batch)
            raise self._refused(one, batch)
        limits = {str(request["custom_id"]): limit_of(request["body"]) for request in requests_in(one.requests)}
        self._rounds |= dict.fromkeys(limits, one.round)
        taken = taken_file(one)
        earlier = set(taken.read_text(encoding="ascii").split()) if taken.is_file() else set()
        with taken.open("a", encoding="ascii") as log:
            for file_id in (batch.get("output_file_id"), batch.get("error_file_id")):
                for line in self._lines(file_id):
                    name = str(line.get("custom_id"))
                    if name in wanted and name in limits:
                        self._take(name, line, limits[name], one, take)
                        # After the answer is stored: what is missing here is fetched once more, and not paid for.
                        log.write(f"{name}\n")
                        log.flush()
            is_news = batch["status"] == "cancelled" and any(name in wanted and name not in earlier for name in limits)
            log.writelines(f"{name}\n" for name in limits if is_news and name in wanted)  # an error once
        if all(name in wanted or name in earlier for name in limits):
            self._forget(one, batch)
        if is_news:
            raise WorkError(
                f"the batch {one.batch_id} was cancelled at {self._url}",
                expected="a batch that continues to its end",
                do="start again to request the rest: what it had answered is kept",
            )
        return None

    def _ended(self, one: BatchRecord, task: ProgressTask) -> Mapping[str, Any]:
        pause = _FIRST_LOOK_SECONDS
        while True:
            try:
                batch = self._call("GET", f"batches/{one.batch_id}")
            except WorkError:
                if self._waits:
                    raise
                return {"status": "unknown"}  # the batch continues while its provider does not answer
            if batch["status"] in _ENDED or not self._waits:
                return batch
            done, total = counts_of(batch)
            task.note(f"{one.batch_id}: {batch['status']}, {done:,} of {total:,}")
            self._never.wait(pause if self._look_seconds is None else self._look_seconds)
            pause = min(_LAST_LOOK_SECONDS, 1.5 * pause)

    def _take(
        self,
        name: str,
        line: Mapping[str, Any],
        limit: int,
        one: BatchRecord,
        take: Callable[[str, Generation], None],
    ) -> None:
        """One line of an output or error file: an answer, or why there is none."""
        response = line.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == httpx2.codes.OK:
            try:
                take(name, generation_of(body, limit, is_chat=one.endpoint.endswith("chat/completions")))
                self._problems.pop(name, None)
            except ValueError as error:
                self._problems[name] = self._lost(name, f"an answer that {error}")
            return
        words = without_key(message_in(line.get("error") or body or {}) or f"HTTP {status}", self._key)
        code = str((line.get("error") or {}).get("code") or "")
        is_invalid = status is None and code.startswith("invalid")
        if not is_invalid and (status is None or is_passing(int(status))):
            self._problems[name] = self._lost(name, words)
        else:
            refusal, is_own_fault = refusal_of(line, words, self._url)
            # A key, a model or an account that is refused may be allowed later; what is wrong with a request stays.
            note = self._problems.refuse if is_own_fault else self._problems.__setitem__
            note(name, refusal)

    def _lost(self, name: str, words: str) -> WorkError:
        return WorkError(
            f"a request of a batch has no answer after {_ROUNDS} batches; the last: {words} (custom_id {name})",
            expected="an answer within the day of a batch",
            do="start again: what was answered is kept, and only the rest is requested",
        )

    def _refused(self, one: BatchRecord, batch: Mapping[str, Any]) -> RequestError:
        listed = (batch.get("errors") or {}).get("data") or ()
        words = "; ".join(str(error.get("message")) for error in listed[:3]) or "no reason given"
        return RequestError(
            f"the batch {one.batch_id} of {self._url} has failed as a whole: {without_key(words, self._key)}",
            expected="a file of requests that the server takes",
            do="see what the server says; without the Batch API (--batch) each request is sent by itself",
        )

    def _lines(self, file_id: Any) -> Iterator[Mapping[str, Any]]:
        """The lines of a file of the provider; none without a file."""
        if not file_id:
            return
        place = self._folder / f"{uuid.uuid4().hex}.download"
        self._download(str(file_id), place)
        try:
            with place.open("rb") as file:
                for line in file:
                    if line.strip():
                        yield json.loads(line)
        finally:
            place.unlink(missing_ok=True)

    def _download(self, file_id: str, place: Path) -> None:
        def load() -> httpx2.Response:
            with self._client.stream("GET", f"{self._url}/files/{file_id}/content") as response:
                if not response.is_success:
                    response.read()
                    return response
                with disk_full_explained(place), place.open("wb") as file:
                    for block in response.iter_bytes():
                        file.write(block)
                return response

        self._tried(load)

    def _forget(self, one: BatchRecord, batch: Mapping[str, Any]) -> None:
        """Remove the files of a batch whose answers are stored, here and at the provider."""
        remove(one)
        for file_id in (one.file_id, batch.get("output_file_id"), batch.get("error_file_id")):
            if file_id:
                # A file that stays costs nothing: the provider's own expiry removes it.
                with suppress(httpx2.HTTPError):
                    self._client.delete(f"{self._url}/files/{file_id}")

    def _call(
        self, method: str, path: str, *, found: Callable[[], Mapping[str, Any] | None] | None = None, **parts: Any
    ) -> Mapping[str, Any]:
        """A request that has a document as its answer.

        Args:
            method: Of HTTP.
            path: Below the address.
            found: Asked before a repetition: what the request has made although its answer was lost.
            parts: As httpx2 takes them.
        """

        def send() -> httpx2.Response:
            for file in (parts.get("files") or {}).values():
                file[1].seek(0)
            return self._client.request(method, f"{self._url}/{path}", **parts)

        answer = self._tried(send, found)
        if isinstance(answer, Mapping):
            return answer
        try:
            document = answer.json()
        except ValueError as error:
            raise self._no_api(f"{path} is not JSON: {server_words(answer, self._key)}") from error
        if not isinstance(document, dict):
            raise self._no_api(f"{path} is no object")
        return document

    def _tried(
        self, send: Callable[[], httpx2.Response], found: Callable[[], Mapping[str, Any] | None] | None = None
    ) -> httpx2.Response | Mapping[str, Any]:
        for attempt in range(1, NUM_ATTEMPTS + 1):
            retry_after = None
            try:
                response = send()
            except httpx2.TransportError as error:
                last = without_key(f"{type(error).__name__}: {error}", self._key)
            else:
                if response.is_success:
                    return response
                words = server_words(response, self._key)
                if response.status_code in (httpx2.codes.NOT_FOUND, httpx2.codes.METHOD_NOT_ALLOWED):
                    raise self._no_api(f"HTTP {response.status_code}: {words}")
                if not is_passing(response.status_code):
                    raise error_of(response, words, self._url, self._model)
                last, retry_after = f"HTTP {response.status_code}: {words}", response.headers.get("Retry-After")
            pause = pause_seconds(attempt, retry_after, self._first_pause, random.random())  # noqa: S311
            if attempt == NUM_ATTEMPTS or pause is None:
                break
            self._never.wait(pause)
            if found is not None and (made := found()) is not None:
                return made
        raise WorkError(
            f"{self._url} gave no answer, tried {NUM_ATTEMPTS} times; the last: {last}",
            expected="the Batch API of an OpenAI-compatible server",
            do="start again later: batches that were made are found again, and nothing is paid for twice",
        )

    def _no_api(self, what: str) -> RequestError:
        gone = f", or give it up, which pays for the rest of it once more: remove {self._asked}" if self._asked else ""
        return RequestError(
            f"{self._url} has no Batch API, or no longer knows this batch: {what}",
            expected="/files and /batches as OpenAI's API has them",
            do=f"do without the Batch API (--batch): each request is then sent by itself{gone}",
        )
