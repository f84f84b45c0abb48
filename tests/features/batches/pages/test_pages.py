"""/batches: the list, progress, files and cancel of a batch, for this project and these scopes alone."""

from __future__ import annotations

import json
from typing import Any

from tests.fixtures.echo_engine import answering
from tests.fixtures.pages import Browser

from luthier.core.access import Caller
from luthier.features.batches import job as batch_job
from luthier.features.batches import service
from luthier.features.batches.records import BatchRequest
from luthier.features.batches.store import BatchView
from luthier.platform.auth.service import create_project
from luthier.platform.files import service as files
from luthier.platform.home.context import Context


def started(home: Context, *lines: dict[str, Any], **changes: Any) -> BatchView:
    with files.incoming_file(home) as incoming:
        incoming.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        stored = files.keep_file(home, "default", incoming, filename="in.jsonl", purpose="batch")
    asked = {"input_file_id": stored.file_id, "endpoint": "/v1/responses", "completion_window": "24h"} | changes
    return service.start(home, Caller(), BatchRequest.model_validate(asked))


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/responses", "body": {"model": "tiny", **body}}


def worked(home: Context) -> None:
    job = home.jobs.claim("here", ("infer",))
    assert job is not None
    outcome = batch_job.carry_out(home, job)
    assert outcome.status != "validated"
    home.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)


def test_a_batch_is_seen_from_its_queue_to_its_files(home: Context, browser: Browser) -> None:
    answering(home)
    one = browser("read", "infer")
    assert "No batches yet" in one.get("/batches").text
    batch_id = started(home, line("a", input="say one"), line("b"), metadata={"use": "<b>"}).batch.batch_id
    page = one.get(f"/batches/{batch_id}").text
    assert "Waiting for a worker" in page
    assert "data-look" in page
    assert "&lt;b&gt;" in page
    assert f'action="/batches/{batch_id}/cancel"' in page
    assert f'href="/batches/{batch_id}"' in one.get("/batches").text
    # A piece of the page is sent again only once something has changed.
    headers = {"hx-request": "true"}
    assert one.get(f"/batches/{batch_id}?after=validating-0-0", headers=headers).status_code == 204
    worked(home)
    piece = one.get(f"/batches/{batch_id}?after=validating-0-0", headers=headers).text
    assert "<html" not in piece
    assert "data-look" not in piece
    assert "2 of 2" in piece
    assert "completed" in piece
    answers, errors = (one.get(f"/batches/{batch_id}/{name}.jsonl") for name in ("output", "errors"))
    assert json.loads(answers.text)["custom_id"] == "a"
    assert json.loads(errors.text)["custom_id"] == "b"
    assert "attachment" in answers.headers["content-disposition"]
    assert f'href="/batches/{batch_id}/output.jsonl"' in one.get(f"/batches/{batch_id}").text


def test_a_batch_is_cancelled_and_says_why_it_has_failed(home: Context, browser: Browser) -> None:
    answering(home)
    one = browser("read", "infer")
    first = started(home, line("a", input="x")).batch.batch_id
    assert one.post(f"/batches/{first}/cancel").headers["location"] == f"/batches/{first}"
    assert "cancelled" in one.get(f"/batches/{first}").text
    again = one.post(f"/batches/{first}/cancel")
    assert (again.status_code, "is cancelled" in again.text) == (409, True)
    second = started(home, line("a", input="x"), line("a", input="y")).batch.batch_id
    worked(home)
    assert "that of an earlier line" in one.get(f"/batches/{second}").text
    assert one.get(f"/batches/{second}/output.jsonl").status_code == 404


def test_other_projects_and_scopes(home: Context, browser: Browser) -> None:
    create_project(home, "other")
    batch_id = started(home, line("a", input="x")).batch.batch_id
    other = browser("admin", project="other")
    assert "No batches yet" in other.get("/batches").text
    for path in ("", "/output.jsonl"):
        assert other.get(f"/batches/{batch_id}{path}").status_code == 404
    assert other.post(f"/batches/{batch_id}/cancel").status_code == 404
    reader = browser("read")
    assert "cancel" not in reader.get(f"/batches/{batch_id}").text.lower().replace("cancelled", "")
    assert reader.post(f"/batches/{batch_id}/cancel").status_code == 403
    assert browser("infer").get("/batches").status_code == 403
