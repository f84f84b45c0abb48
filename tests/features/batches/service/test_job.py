"""Batches as jobs: killed, cancelled and expired in the middle, and large ones; no answer is lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.echo_engine import answering

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, WorkError
from luthier.core.ids import new_id
from luthier.core.ports import SilentProgress
from luthier.core.stream import Failed
from luthier.features.batches import input_file, service
from luthier.features.batches import job as batch_job
from luthier.features.batches.records import BatchRequest
from luthier.features.batches.store import BatchView
from luthier.features.serving.api import offline
from luthier.features.training import jobs
from luthier.platform.auth import access_check
from luthier.platform.auth.service import create_key, revoke_key
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.platform.notifications.store import EVENT_TYPES, Webhook

CALLER = Caller()
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Context]:
    """A home of this file; every test has batches of its own."""
    from luthier.ml.inference.models import sources

    with Context.open(tmp_path_factory.mktemp("batches") / "home") as context:
        sources.pull(str(tiny_model), context.home, SilentProgress())
        yield context


@pytest.fixture
def opened(shared: Context) -> Context:
    answering(shared)
    return shared


def lines(num: int) -> str:
    made = []
    for number in range(num):
        body = {"model": "tiny", "messages": [{"role": "user", "content": f"say {number}"}]}
        made.append(json.dumps({"custom_id": f"id-{number}", "method": "POST", "url": CHAT, "body": body}))
    return "".join(f"{one}\n" for one in made)


def start(context: Context, text: str, caller: Caller = CALLER) -> BatchView:
    with files.incoming_file(context) as incoming:
        incoming.write(text.encode())
        stored = files.keep_file(context, "default", incoming, filename="in.jsonl", purpose="batch")
    asked = {"input_file_id": stored.file_id, "endpoint": CHAT, "completion_window": "24h"}
    return service.start(context, caller, BatchRequest.model_validate(asked))


def claimed(context: Context) -> Job:
    job = context.jobs.claim("here", ("infer",))
    assert job is not None
    return job


def finished(context: Context, job: Job) -> BatchView:
    outcome = batch_job.carry_out(context, job)
    assert outcome.status != "validated"
    context.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)
    return context.batches.get("default", job.document["batch_id"])


def content(context: Context, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    path = files.local_path(context, files.get_file(context, "default", file_id))
    return [json.loads(one) for one in path.read_text().splitlines()]


def test_kills_at_any_moment_lose_and_double_no_answer(opened: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    start(opened, lines(60))
    asked: Counter[str] = Counter()

    def say(text: str) -> str:
        asked[text] += 1
        return text.split()[-1]

    answering(opened, say)
    job = claimed(opened)
    append = batch_job._Files.append
    # Killed before lines are written, in the middle of a line, after them, between storing the output file and naming
    # it, and before the last word.
    for moment in ("before", "torn", "after", "stored", "ended"):
        calls = 0

        def dying(self: Any, found: Any, moment: str = moment) -> None:
            nonlocal calls
            calls += 1
            if calls < 2:
                append(self, found)
                return
            if moment == "torn":
                self._open[True].write(found[0].line[:25])
                self._open[True].flush()
            if moment == "after":
                append(self, found)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            if moment == "ended":
                patched.setattr(batch_job, "_clear", _raise)
            elif moment == "stored":
                patched.setattr(batch_job, "_project_file", partial(_after, batch_job._project_file))
            else:
                patched.setattr(batch_job._Files, "append", dying)
            with pytest.raises(KeyboardInterrupt):
                batch_job.carry_out(opened, job)
    view = finished(opened, job)
    assert view.status == "completed"
    answers = content(opened, view.batch.output_file_id)
    assert sorted(one["custom_id"] for one in answers) == sorted(f"id-{n}" for n in range(60))
    for one in answers:
        said = one["response"]["body"]["choices"][0]["message"]["content"]
        assert f"id-{said}" == one["custom_id"]
    assert (view.batch.num_total, view.batch.num_completed, view.batch.num_failed) == (60, 60, 0)
    assert (view.batch.num_prompt_tokens, view.batch.error_file_id) == (180, None)
    names = [one.filename for one in files.list_files(opened, "default", purpose="batch_output")[0]]
    assert names.count(f"{view.batch.batch_id}_output.jsonl") == 1
    # Answers that were on the disk were not asked for again.
    assert max(asked.values()) <= 4
    assert not (opened.settings.jobs_folder / job.job_id / "output.jsonl").exists()


def _raise(*_: Any) -> None:
    raise KeyboardInterrupt


def _after(work: Callable[..., Any], *given: Any) -> None:
    work(*given)
    raise KeyboardInterrupt


def test_a_cancelled_batch_keeps_what_was_answered(opened: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    view = start(opened, lines(50))
    monkeypatch.setattr(batch_job, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(batch_job, "NUM_AT_ONCE", 2)

    def say(text: str) -> str:
        if text == "say 10":
            service.cancel(opened, CALLER, view.batch.batch_id)
        return text

    answering(opened, say)
    view = finished(opened, claimed(opened))
    assert view.status == "cancelled"
    num = len(content(opened, view.batch.output_file_id))
    assert 10 <= num < 50
    assert (view.batch.num_completed, view.batch.num_failed, view.batch.error_file_id) == (num, 0, None)
    assert view.batch.cancelled_at is not None


def test_a_batch_whose_job_was_cancelled_keeps_what_was_answered(
    opened: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `luthier jobs cancel`, which ends the process of the job by SIGTERM."""
    start(opened, lines(20))
    monkeypatch.setattr(batch_job, "NUM_AT_ONCE", 1)
    job = claimed(opened)

    def say(text: str) -> str:
        if text == "say 5":
            opened.jobs.ask(job.job_id, "cancel")
            os.kill(os.getpid(), signal.SIGTERM)
        return text

    answering(opened, say)
    view = finished(opened, job)
    assert (view.job.status, view.status, view.batch.status) == ("cancelled", "cancelled", "cancelled")
    made = content(opened, view.batch.output_file_id)
    assert [one["custom_id"] for one in made] == [f"id-{number}" for number in range(5)]
    assert (view.batch.num_completed, view.batch.num_failed) == (5, 0)
    assert not (opened.settings.jobs_folder / job.job_id / "output.jsonl").exists()


def test_a_batch_whose_waiting_job_was_cancelled_keeps_what_was_answered(
    opened: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `luthier jobs cancel` between two attempts, or before the first one."""
    start(opened, lines(20))
    monkeypatch.setattr(batch_job, "NUM_AT_ONCE", 1)
    job = claimed(opened)

    def say(text: str) -> str:
        if text == "say 5":
            os.kill(os.getpid(), signal.SIGTERM)
        return text

    answering(opened, say)
    with pytest.raises(SystemExit):
        batch_job.carry_out(opened, job)
    opened.jobs.give_back(job.job_id, job.attempt)
    other = start(opened, lines(3))
    for one in (job, other.job):
        jobs.ask(opened, one.job_id, "cancel")
    view = opened.batches.get("default", job.document["batch_id"])
    assert (view.job.status, view.batch.status) == ("cancelled", "cancelled")
    assert [one["custom_id"] for one in content(opened, view.batch.output_file_id)] == [f"id-{n}" for n in range(5)]
    assert not (opened.settings.jobs_folder / job.job_id / "output.jsonl").exists()
    unbegun = opened.batches.get("default", other.batch.batch_id).batch
    assert (unbegun.status, unbegun.output_file_id) == ("cancelled", None)


def test_an_expired_batch_says_so_of_every_request_that_is_left(
    opened: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = start(opened, lines(30) + "not json\n")
    monkeypatch.setattr(batch_job, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(batch_job, "NUM_AT_ONCE", 2)

    def say(text: str) -> str:
        if text == "say 5":
            opened.batches.change(view.batch.batch_id, {"expires_at": 1.0})
        return text

    answering(opened, say)
    view = finished(opened, claimed(opened))
    assert view.status == "expired"
    answered, late = (content(opened, one) for one in (view.batch.output_file_id, view.batch.error_file_id))
    assert len(answered) >= 5
    assert {one["error"]["code"] for one in late} == {"batch_expired"}
    named = [one["custom_id"] for one in [*answered, *late]]
    assert sorted(map(str, named)) == sorted([*(f"id-{n}" for n in range(30)), "None"])
    assert view.batch.num_completed + view.batch.num_failed == view.batch.num_total == 31


def test_an_engine_that_ends_fails_its_requests_and_then_the_attempt(
    opened: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "_WAIT_SECONDS", 0.0)
    ended = Failed(
        error=WorkError("the process that answers has ended", expected="an answer", do="ask again").as_json()
    )
    view = start(opened, lines(3))
    answering(opened, lambda text: ended if text == "say 1" else text)
    view = finished(opened, claimed(opened))
    (lost,) = content(opened, view.batch.error_file_id)
    assert (lost["custom_id"], lost["error"]["code"]) == ("id-1", "engine_ended")
    view = start(opened, lines(40))
    num_asked = 0

    def dying(text: str) -> Any:
        nonlocal num_asked
        num_asked += 1
        return text if num_asked <= 3 else ended

    answering(opened, dying)
    monkeypatch.setattr(batch_job, "_MAX_LOST", 5)
    monkeypatch.setattr(batch_job, "NUM_AT_ONCE", 1)
    job = claimed(opened)
    with pytest.raises(WorkError, match="requests in a row had no answer"):
        batch_job.carry_out(opened, job)
    one = opened.batches.of_job(job.job_id)
    assert (one.status, one.num_completed, one.num_failed) == ("failed", 3, 5)
    assert [made["custom_id"] for made in content(opened, one.output_file_id)] == ["id-0", "id-1", "id-2"]
    assert len(content(opened, one.error_file_id)) == 5
    assert one.batch_id == view.batch.batch_id
    opened.jobs.ask(job.job_id, "cancel")
    opened.jobs.crash(job.job_id, job.attempt, "killed")


def test_a_batch_ends_with_the_key_that_started_it(opened: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = create_key(opened, "gone", scopes=("infer",))
    caller = Caller(key_id=key.key_id, name="gone", scopes=("infer",))
    monkeypatch.setattr(access_check, "REMEMBERED_SECONDS", 0.0)
    monkeypatch.setattr(batch_job, "NUM_AT_ONCE", 2)

    def say(text: str) -> str:
        if text == "say 5":
            revoke_key(opened, key.key_id)
        return text

    answering(opened, say)
    start(opened, lines(40), caller)
    job = claimed(opened)
    view = finished(opened, job)
    assert view.status == "failed"
    (fault,) = view.batch.faults
    assert fault.code == "access_revoked"
    assert f"the key 'gone' ({key.key_id}) was revoked" in fault.message
    answers = content(opened, view.batch.output_file_id)
    assert 6 <= len(answers) < 12
    assert view.batch.num_completed == len(answers)
    # Another one of the same key does not even begin.
    start(opened, lines(2), caller)
    asked = answering(opened).asked
    view = finished(opened, claimed(opened))
    assert (view.status, view.batch.output_file_id, asked) == ("failed", None, [])


def test_many_lines_take_no_memory_of_their_own(
    opened: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.jsonl"
    num = 20_000
    with path.open("w") as file:
        for number in range(num):
            file.write(json.dumps({"custom_id": str(number), "body": {"model": "m", "text": "x" * 1000}}) + "\n")
    monkeypatch.setattr(batch_job, "document_of", _quick(batch_job.document_of))
    tracemalloc.start()
    try:
        checked = batch_job._checked(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (checked.num_requests, checked.models, checked.faults) == (num, ("m",), ())
    # Of 20 MB: what a set of digests takes, about 100 bytes each, and the buffer of the file.
    assert peak < 5 << 20 < path.stat().st_size / 3


def _quick(document: Callable[[bytes | None], Any]) -> Callable[[bytes | None], Any]:
    """Lines of this test are known to be within the limits of JSON, whose check takes a second for so many."""
    return lambda line: json.loads(line) if line is not None else document(line)


def test_a_hundred_thousand_lines_are_answered_and_counted_with_few_of_them_in_memory(
    opened: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = 100_000
    made = [f'{{"custom_id":"{n}","method":"POST","url":"{CHAT}","body":{{}}}}\n' for n in range(num - 1)]
    made.insert(num // 2, "not json\n")
    view = start(opened, "".join(made))
    usage = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    monkeypatch.setattr(batch_job, "answer_offline", lambda *_: offline.OfflineAnswer(200, usage))
    read_lines, append = batch_job.lines_of, batch_job._Files.append
    num_read = num_written = most_held = 0

    def counted(path: Path) -> Iterator[tuple[int, bytes | None]]:
        nonlocal num_read
        num_read = 0
        for one in read_lines(path):
            num_read += 1
            yield one

    def noted(self: Any, found: Any) -> None:
        nonlocal num_written, most_held
        most_held = max(most_held, num_read - num_written)
        num_written += len(found)
        append(self, found)

    monkeypatch.setattr(batch_job, "lines_of", counted)
    monkeypatch.setattr(batch_job._Files, "append", noted)
    view = finished(opened, claimed(opened))
    one = view.batch
    assert (view.status, one.num_total, one.num_completed, one.num_failed) == ("completed", num, num - 1, 1)
    assert (one.num_prompt_tokens, one.num_new_tokens) == (3 * (num - 1), 2 * (num - 1))
    assert 0 < most_held <= batch_job.NUM_AT_ONCE + 1
    file = files.get_file(opened, "default", str(one.output_file_id))
    with files.local_path(opened, file).open("rb") as answers:
        named = {int(line.partition(b'"custom_id":"')[2].partition(b'"')[0]) for line in answers}
    assert named == set(range(num - 1))
    (wrong,) = content(opened, one.error_file_id)
    assert (wrong["error"]["line"], wrong["error"]["code"]) == (num // 2 + 1, "invalid_line")


def test_a_file_that_a_failed_attempt_has_stored_is_not_taken_for_all_answers(opened: Context, tmp_path: Path) -> None:
    view = start(opened, lines(6))
    # The engine had ended for good behind the first answer, and a kill came between storing the file and the last word.
    (tmp_path / "first").write_text('{"custom_id": "id-0"}\n')
    stored = batch_job._project_file(opened, view.batch, tmp_path / "first", f"{view.batch.batch_id}_output.jsonl")
    ended = finished(opened, claimed(opened))
    assert ended.status == "completed"
    assert ended.batch.output_file_id != stored
    answers = content(opened, ended.batch.output_file_id)
    assert sorted(one["custom_id"] for one in answers) == [f"id-{number}" for number in range(6)]


def test_a_batch_whose_job_has_failed_has_nothing_to_cancel(opened: Context) -> None:
    view = start(opened, lines(2))
    job = claimed(opened)
    error = {"type": "WorkError", "came": "it crashed", "expected": "an attempt that ends", "do": "start it again"}
    opened.jobs.finish(job.job_id, job.attempt, "failed", error)
    with pytest.raises(ConflictError, match="is failed"):
        service.cancel(opened, CALLER, view.batch.batch_id)
    assert opened.batches.of_job(job.job_id).status == "validating", "resumed, it is answered and not cancelled"


def test_a_byte_order_mark_is_no_part_of_the_first_request(opened: Context) -> None:
    start(opened, "\ufeff" + lines(2))
    view = finished(opened, claimed(opened))
    assert (view.batch.num_completed, view.batch.num_failed, view.batch.model) == (2, 0, "tiny")
    assert sorted(one["custom_id"] for one in content(opened, view.batch.output_file_id)) == ["id-0", "id-1"]


def test_a_line_that_is_too_long_fails_alone(opened: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "MAX_LINE_BYTES", 300)
    view = start(opened, lines(1) + "x" * 1000 + "\n" + lines(2).splitlines()[1] + "\n")
    view = finished(opened, claimed(opened))
    (wrong,) = content(opened, view.batch.error_file_id)
    assert (wrong["error"]["line"], wrong["error"]["code"]) == (2, "invalid_line")
    assert sorted(one["custom_id"] for one in content(opened, view.batch.output_file_id)) == ["id-0", "id-1"]


@pytest.mark.parametrize(
    ("batch_status", "job_status", "event_type"),
    [
        ("completed", "succeeded", "batch.completed"),
        ("failed", "succeeded", "batch.failed"),
        ("expired", "succeeded", "batch.expired"),
        ("cancelled", "cancelled", "batch.cancelled"),
        ("in_progress", "failed", "batch.failed"),
        ("in_progress", "cancelled", "batch.cancelled"),
    ],
)
def test_webhooks_get_openais_event_about_the_end_of_a_batch(
    opened: Context, batch_status: Any, job_status: Any, event_type: str
) -> None:
    from openai.types.webhooks import UnwrapWebhookEvent
    from pydantic import TypeAdapter

    while opened.webhooks.announce():
        pass  # of other tests of this home
    url = f"https://example.com/{batch_status}/{job_status}"
    hook = Webhook(webhook_id=new_id("webhook"), project_id="default", url=url, event_types=EVENT_TYPES)
    opened.webhooks.add(hook, "whsec_c2VjcmV0")
    view = start(opened, lines(1))
    job = claimed(opened)
    opened.batches.change(view.batch.batch_id, {"status": batch_status})
    opened.jobs.finish(job.job_id, job.attempt, job_status)
    assert opened.webhooks.announce() == 1
    (sent,) = opened.webhooks.deliveries(hook.webhook_id, "default", 10)
    opened.webhooks.remove(hook.webhook_id, "default")
    event: Any = TypeAdapter(UnwrapWebhookEvent).validate_json(sent.body)
    assert (event.type, event.object, event.data.id) == (event_type, "event", view.batch.batch_id)
    assert event.created_at == int(opened.jobs.get(job.job_id).finished_at or 0)
