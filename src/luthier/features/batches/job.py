"""An attempt of a batch: it answers what earlier attempts have not, and ends with the files of answers and errors.

Every answer is appended to a file in the folder of the job and synced to the disk, as the line that the output file
will have. A later attempt reads which requests these files hold and skips them, so that no answer is lost or doubled,
wherever a kill came. Memory does not grow with the size of the file, only with a digest for each request.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import ValidationError

from luthier.core.access import Caller
from luthier.core.errors import (
    NotAllowedError,
    StorageFullError,
    UnreachableError,
    WorkError,
    library_words_hidden,
)
from luthier.core.ids import sha256_bytes, sha256_file
from luthier.core.json_limits import json_utf8
from luthier.core.system.files import cut_partial_line
from luthier.features.batches.input_file import document_of, lines_of, model_of
from luthier.features.batches.records import (
    ERRORS_NAME,
    MAX_NAMED_MODELS,
    OUTPUT_NAME,
    Batch,
    BatchFault,
    BatchStatus,
    Line,
)
from luthier.features.batches.service import CALLER
from luthier.features.serving.api.offline import TokenCounts, answer_offline, preload, tokens_of, use_job_engine
from luthier.platform.auth.access_check import AccessCheck
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.attempt import JobProgress, exit_on_sigterm, own_copy, report_step
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome

MAX_REQUESTS: Final = 500_000
NUM_AT_ONCE: Final = 16
"""Requests that are answered at the same time; the engine answers them together."""
_MAX_FAULTS: Final = 20
_MAX_LOST: Final = 32
"""So many requests in a row without an engine fail the batch; what was answered until then becomes its files."""
_LOOK_SECONDS: Final = 1.0
_REPORT_SECONDS: Final = 0.5
_EXPIRED: Final = "This request could not be executed before the completion window expired."
_NO_TOKENS: Final = TokenCounts()


@dataclass(frozen=True, slots=True)
class _Written:
    """A line of a file that the batch makes.

    Attributes:
        key: Of the request.
        is_ok: Whether it was answered.
        line: The line, without its end.
        tokens: Of prompt and answer.
        is_lost: Whether there is no answer since the engine has ended.
    """

    key: int
    is_ok: bool
    line: bytes
    tokens: TokenCounts = _NO_TOKENS
    is_lost: bool = False


@dataclass(slots=True)
class _Done:
    """What the files hold so far."""

    keys: set[int] = field(default_factory=set)
    num_completed: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_cached_tokens: int = 0
    num_thinking_tokens: int = 0

    def count(self, one: _Written) -> None:
        self.keys.add(one.key)
        self.num_completed += one.is_ok
        self.num_failed += not one.is_ok
        self.num_prompt_tokens += one.tokens.num_prompt
        self.num_new_tokens += one.tokens.num_new
        self.num_cached_tokens += one.tokens.num_cached
        self.num_thinking_tokens += one.tokens.num_thinking

    def values(self) -> dict[str, Any]:
        """As fields of a batch."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "keys"}


def carry_out(context: Context, job: Job) -> Outcome:
    """Answer all requests that are left, until the batch is cancelled or expires.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: The engine or the database cannot be reached; the job is tried again.
        WorkError: The engine ends again and again; the batch has failed.
    """
    one = context.batches.of_job(job.job_id)
    if one.has_ended:  # the attempt before died between its work and its last word
        _clear(context, job)
        return Outcome(status="succeeded")
    context.progress = JobProgress(context, job)
    use_job_engine(context)
    try:
        return _carried_out(context, job, one)
    except SystemExit:
        if context.jobs.get(job.job_id).wish != "cancel":
            raise
        end_cancelled(context, job)
        return Outcome(status="paused")  # which the worker makes cancelled, as it was asked to


def _carried_out(context: Context, job: Job, one: Batch) -> Outcome:
    with exit_on_sigterm(), library_words_hidden():
        path = own_copy(context, job, one.input_file_id, "input")
        if one.status in ("validating", "cancelling") and one.in_progress_at is None:
            checked = _checked(path)
            if checked.faults:
                values: dict[str, Any] = {"status": "failed", "faults": checked.faults}
                context.batches.change(one.batch_id, values, time_of="failed_at")
                return Outcome(status="succeeded")
            values = {"status": "in_progress", **checked.values()}
            one = context.batches.change(one.batch_id, values, time_of="in_progress_at")
        # The files are in the folder of the job, not of the attempt: that is what makes a later attempt continue.
        with _Files(context.settings.jobs_folder / job.job_id) as written:
            if one.status != "finalizing":
                try:
                    _answer_all(context, job, one, path, written)
                except (StorageFullError, UnreachableError):
                    raise  # no fault of the batch: it is tried again
                except NotAllowedError as error:
                    return _refuse(context, job, one, written, error)
                except WorkError:
                    # The job fails, and with it the batch: not what was answered before.
                    context.batches.change(one.batch_id, written.read().values())
                    _finish(context, job, context.batches.of_job(job.job_id), has_failed=True)
                    raise
        _finish(context, job, context.batches.of_job(job.job_id))
    return Outcome(status="succeeded")


def end_cancelled(context: Context, job: Job) -> None:
    """End a batch whose job was cancelled; what was answered until then becomes its files."""
    one = context.batches.of_job(job.job_id)
    if one.has_ended:
        return
    folder = context.settings.jobs_folder / job.job_id
    folder.mkdir(parents=True, exist_ok=True)  # no attempt has begun
    with _Files(folder) as written:
        done = written.read()
    # One that is finalizing has all answers.
    status = {} if one.status == "finalizing" else {"status": "cancelling"}
    one = context.batches.change(one.batch_id, done.values() | status, time_of="cancelling_at" if status else "")
    _finish(context, job, one)


def _refuse(context: Context, job: Job, one: Batch, written: _Files, error: NotAllowedError) -> Outcome:
    """End a batch whose key was revoked; what was answered before becomes its files."""
    fault = BatchFault(code="access_revoked", message=error.in_one_line)
    context.batches.change(one.batch_id, written.read().values() | {"faults": (fault,)})
    _finish(context, job, context.batches.of_job(job.job_id), has_failed=True)
    return Outcome(status="failed", error=error.as_json())


@dataclass(frozen=True, slots=True)
class _Checked:
    num_requests: int
    models: tuple[str, ...] | None
    faults: tuple[BatchFault, ...]

    def values(self) -> dict[str, Any]:
        """As fields of a batch."""
        only = self.models[0] if self.models and len(self.models) == 1 else None
        return {"num_total": self.num_requests, "model": only, "models": self.models}


def _checked(path: Path) -> _Checked:
    """What is wrong with the file as a whole: a line that is wrong by itself fails alone, later."""
    seen, faults = set[int](), list[BatchFault]()
    models, num_requests = set[str](), 0
    for number, line in lines_of(path):
        num_requests += 1
        document = document_of(line)
        if isinstance(document, str):
            continue
        custom_id = document.get("custom_id")
        if (model := model_of(document)) is not None and len(models) <= MAX_NAMED_MODELS:
            models.add(model)
        if not isinstance(custom_id, str):
            continue
        key = _key(custom_id, number)
        if key in seen and len(faults) < _MAX_FAULTS:
            message = f"the custom_id {custom_id[:100]!r} is that of an earlier line; expected: a new one in each line"
            faults.append(BatchFault(code="duplicate_custom_id", message=message, line=number, param="custom_id"))
        seen.add(key)
    if not num_requests:
        faults.append(BatchFault(code="empty_file", message="the file has no requests; expected: at least one line"))
    if num_requests > MAX_REQUESTS:
        message = f"the file has {num_requests:,} requests; expected: at most {MAX_REQUESTS:,}; split it"
        faults.append(BatchFault(code="too_many_requests", message=message))
    named = tuple(sorted(models)) if len(models) <= MAX_NAMED_MODELS else None
    return _Checked(num_requests, named, tuple(faults))


def _answer_all(context: Context, job: Job, one: Batch, path: Path, written: _Files) -> None:
    caller = Caller(project_id=job.project_id, scopes=("infer",), **job.document[CALLER])
    access = AccessCheck(context, caller, "infer")
    access.require()
    preload(context, caller, one.endpoint, one.model)
    done = written.read()
    context.batches.change(one.batch_id, done.values())
    task = context.progress.task("Answering", one.num_total, "requests", len(done.keys))
    pool = ThreadPoolExecutor(NUM_AT_ONCE, thread_name_prefix="batch")
    running: set[Future[_Written]] = set()
    looked, reported, num_lost = time.monotonic(), -math.inf, 0
    refused: NotAllowedError | None = None

    def keep_ready() -> None:
        """Wait for an answer, and store all that are ready."""
        nonlocal num_lost, reported
        ready, _ = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
        running.difference_update(ready)
        found = [future.result() for future in ready]
        # Synced to the disk before it is counted: the counts never promise more than the files hold.
        written.append(found)
        for answer in found:
            done.count(answer)
        # Not after each answer: writing the whole file takes longer than a short answer.
        if time.monotonic() - reported >= _REPORT_SECONDS:
            reported = time.monotonic()
            report_step(context, job, len(done.keys))
        task.advance(len(found))
        if found:
            num_lost = num_lost + len(found) if all(answer.is_lost for answer in found) else 0
        if num_lost >= _MAX_LOST:
            raise _no_engine(num_lost)

    stopped = _stopped(context, one.batch_id, done)
    try:
        with task:
            for number, line in lines_of(path):
                if _key_of(line, number) in done.keys:
                    continue
                while len(running) >= NUM_AT_ONCE and stopped is None:
                    keep_ready()
                    if time.monotonic() - looked >= _LOOK_SECONDS:
                        looked = time.monotonic()
                        stopped = _stopped(context, one.batch_id, done)
                if stopped is not None:
                    break
                if (refused := access.refusal()) is not None:
                    break  # what is under way is kept
                # At most NUM_AT_ONCE lines are in memory, however long the file is.
                running.add(pool.submit(_answered, context, caller, one, number, line))
            while running:
                keep_ready()
        if refused is not None:
            raise refused
    finally:
        # After an error or a signal nothing is waited for: threads in the middle of an answer end with the engine.
        pool.shutdown(wait=not running, cancel_futures=True)
    if stopped is None and len(done.keys) < one.num_total:
        # The file had fewer lines than could wait at once, so that nobody has looked meanwhile.
        stopped = _stopped(context, one.batch_id, done)
    if stopped == "expired":
        _expire(one, path, done, written)
    status = {"status": "finalizing"} if stopped is None else {}
    times = {"expired": "expired_at", "cancelled": "cancelling_at"}
    context.batches.change(one.batch_id, done.values() | status, time_of=times.get(stopped or "", "finalizing_at"))


def _no_engine(num_lost: int) -> WorkError:
    return WorkError(
        f"{num_lost} requests in a row had no answer, since the process that answers has ended each time",
        expected="an engine that loads the model and answers",
        do="see the log of the job's last attempt: memory may be too small for the model",
    )


def _stopped(context: Context, batch_id: str, done: _Done) -> BatchStatus | None:
    """Whether a batch ends before its last request: `cancelled` or `expired`. Stores the counts on the way."""
    now = context.batches.change(batch_id, done.values())
    if now.status == "cancelling":
        return "cancelled"
    return "expired" if context.access.now() >= now.expires_at else None


def _expire(one: Batch, path: Path, done: _Done, written: _Files) -> None:
    """An error line for every request that was not executed."""
    late: list[_Written] = []
    for number, line in lines_of(path):
        document = document_of(line)
        custom_id = None if isinstance(document, str) else document.get("custom_id")
        key = _key_of(line, number)
        if key in done.keys:
            continue
        custom_id = custom_id if isinstance(custom_id, str) else None
        late.append(_failed(one, key, custom_id, number, "batch_expired", _EXPIRED))
        if len(late) >= NUM_AT_ONCE:
            written.append(late)
            for each in late:
                done.count(each)
            late = []
    written.append(late)
    for each in late:
        done.count(each)


def _finish(context: Context, job: Job, one: Batch, *, has_failed: bool = False) -> None:
    """Make the files of the project, each once, and write down how the batch has ended."""
    folder = context.settings.jobs_folder / job.job_id
    made = {}
    for name, column in ((OUTPUT_NAME, "output_file_id"), (ERRORS_NAME, "error_file_id")):
        source = folder / name
        if getattr(one, column) is None and source.is_file() and source.stat().st_size:
            made[column] = _project_file(context, one, source, f"{one.batch_id}_{name}")
    end: BatchStatus = "completed"
    if has_failed:
        end = "failed"
    elif one.expired_at is not None:
        end = "expired"
    elif one.status == "cancelling":
        end = "cancelled"
    # Of an expired batch the time is there already, and stays.
    context.batches.change(one.batch_id, {"status": end, **made}, time_of=f"{end}_at")
    _clear(context, job)


def _clear(context: Context, job: Job) -> None:
    """Remove what is in the files of the project by now."""
    folder = context.settings.jobs_folder / job.job_id
    for leftover in (folder / OUTPUT_NAME, folder / ERRORS_NAME, *(folder / "files").glob("input.*")):
        leftover.unlink(missing_ok=True)


def _project_file(context: Context, one: Batch, source: Path, filename: str) -> str:
    known, _ = files.list_files(context, one.project_id, purpose="batch_output")
    digest = sha256_file(source)
    for file in known:
        # The attempt before died between storing it and naming it. Where that one had failed, this one has answered
        # more: then it is another file.
        if file.filename == filename and file.sha256 == digest:
            return file.file_id
    added = files.add_file(
        context,
        one.project_id,
        source,
        filename=filename,
        purpose="batch_output",
        expires_after_seconds=one.output_expires_seconds,
        is_result=True,
    )
    return added.file_id


class _Files:
    """The files of answers and of errors, appended to and synced. Use it in a `with` block.

    Args:
        folder: Of the job.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = {True: folder / OUTPUT_NAME, False: folder / ERRORS_NAME}
        self._open: dict[bool, BinaryIO] = {}

    def __enter__(self) -> _Files:
        for is_ok, path in self._paths.items():
            cut_partial_line(path)
            self._open[is_ok] = path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self) -> _Done:
        """What earlier attempts have written."""
        done = _Done()
        for is_ok, path in self._paths.items():
            with path.open("rb") as file:
                for line in file:
                    document = json.loads(line)
                    done.count(_written_line(is_ok, line, document))
        return done

    def append(self, lines: list[_Written]) -> None:
        """Add lines; they are on the disk when this returns."""
        for is_ok, file in self._open.items():
            own = [one.line for one in lines if one.is_ok == is_ok]
            if own:
                file.write(b"".join(line + b"\n" for line in own))
                file.flush()
                os.fsync(file.fileno())


def _written_line(is_ok: bool, line: bytes, document: dict[str, Any]) -> _Written:
    custom_id, number = document.get("custom_id"), (document.get("error") or {}).get("line") or 0
    tokens = tokens_of((document.get("response") or {}).get("body") or {})
    return _Written(_key(custom_id, number), is_ok, line, tokens)


def _answered(context: Context, caller: Caller, one: Batch, number: int, line: bytes | None) -> _Written:
    document = document_of(line)
    if isinstance(document, str):
        return _failed(one, _key(None, number), None, number, "invalid_line", f"line {number:,}: {document}")
    custom_id = document.get("custom_id")
    custom_id = custom_id if isinstance(custom_id, str) else None
    key = _key(custom_id, number)
    try:
        asked = Line.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = f"line {number:,}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        return _failed(one, key, custom_id, number, "invalid_line", message)
    if asked.url != one.endpoint:
        message = f"line {number:,}: url {asked.url[:100]!r}; expected: {one.endpoint}, the endpoint of the batch"
        return _failed(one, key, custom_id, number, "invalid_url", message)
    try:
        answer = answer_offline(context, caller, one.endpoint, asked.body)
    except (StorageFullError, UnreachableError):
        raise  # no fault of the request: the job is tried again
    except WorkError as error:
        lost = _failed(one, key, custom_id, number, "engine_ended", f"{error.came}; what to do: {error.do}")
        return replace(lost, is_lost=True)
    response = {"status_code": answer.status, "request_id": f"req_{_digest(one, key)}", "body": answer.body}
    if answer.warning is not None:
        response["warning"] = answer.warning
    made = {"id": f"batch_req_{_digest(one, key)}", "custom_id": custom_id, "response": response, "error": None}
    return _Written(key, answer.is_ok, _json_line(made), answer.usage)


def _failed(one: Batch, key: int, custom_id: str | None, number: int, code: str, message: str) -> _Written:
    error = {"code": code, "message": message, "line": number}
    made = {"id": f"batch_req_{_digest(one, key)}", "custom_id": custom_id, "response": None, "error": error}
    return _Written(key, False, _json_line(made))


def _json_line(document: dict[str, Any]) -> bytes:
    return json_utf8(document, separators=(",", ":"))


def _key_of(line: bytes | None, number: int) -> int:
    document = document_of(line)
    custom_id = None if isinstance(document, str) else document.get("custom_id")
    return _key(custom_id if isinstance(custom_id, str) else None, number)


def _key(custom_id: str | None, number: int) -> int:
    """Names a request within its batch: its custom_id, or its line where it has none. 64 bits of BLAKE2b."""
    name = f"line {number}" if custom_id is None else f"id {custom_id}"
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _digest(one: Batch, key: int) -> str:
    return sha256_bytes(f"{one.batch_id}:{key}".encode())[:24]
