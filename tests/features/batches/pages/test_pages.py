"""/batches: the list, one batch with its failed requests, its files, cancel, a start from the form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.features.batches.openai.test_api import CHAT, line, worked
from tests.fixtures.echo_engine import answering

from luthier.core.access import Caller
from luthier.features.batches import progress, service
from luthier.features.batches.progress import error_page, seconds_left
from luthier.features.batches.records import ERRORS_NAME, BatchRequest
from luthier.features.batches.store import BatchView
from luthier.platform.auth.service import create_project
from luthier.platform.files import service as files
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
PIECE = {"HX-Request": "true"}


def text_of(lines: list[Any]) -> str:
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)


def started(home: Context, lines: list[Any], project: str = "default") -> BatchView:
    with files.incoming_file(home) as incoming:
        incoming.write(text_of(lines).encode())
        stored = files.keep_file(home, project, incoming, filename="asked <1>.jsonl", purpose="batch")
    asked = {"input_file_id": stored.file_id, "endpoint": CHAT, "completion_window": "24h", "metadata": {"team": "<a>"}}
    return service.start(home, Caller(project_id=project, name="Ada"), BatchRequest.model_validate(asked))


def test_a_batch_from_the_form_to_its_answers(home: Context, browser: Browser) -> None:
    answering(home)
    one = browser("read", "train", "infer")
    assert "No batches yet" in one.get("/batches").text
    token = re.search(r'name="form_token" value="([^"]+)"', one.get("/batches").text.partition("New batch")[2])
    assert token is not None
    form = {"endpoint": CHAT, "hours": "2", "form_token": token[1]}
    lines = [line("a", "say one"), line("b<i>", "say two", temperature=7), "no JSON", line("c", "say three")]
    sent = one.post("/batches", data=form, files={"file": ("in.jsonl", text_of(lines).encode())})
    assert sent.status_code == 303
    address = sent.headers["location"]
    again = one.post("/batches", data=form, files={"file": ("in.jsonl", text_of(lines).encode())})
    assert again.headers["location"] == address, "a double click starts one batch"
    other = one.post("/batches", data=form, files={"file": ("in.jsonl", text_of(lines[:1]).encode())})
    assert other.headers["location"] != address, "the form was gone back to, and another file chosen"
    one.post(f"{other.headers['location']}/cancel")
    page = one.get(address).text
    assert "Waiting for a worker of this server." in page
    assert re.search(r"<dt>Time limit</dt><dd><time [^>]*>in 1 h<", page)
    look = page.partition('hx-get="')[2].partition('"')[0].replace("&amp;", "&")
    assert one.get(look, headers=PIECE).status_code == 204, "nothing has happened since"
    assert ">queued<" in one.get("/batches").text
    worked(home)
    piece = one.get(look, headers=PIECE).text
    assert "<html" not in piece
    assert "data-look" not in piece, "a batch that has ended is not polled"
    for words in ("completed", "4 of 4", "b&lt;i&gt;", "temperature", "not JSON"):
        assert words in piece, words
    assert re.search(r'<td class="number">3</td><td class="wrap">–</td>', piece), "the line that is no JSON"
    assert re.search(r"<td class=\"number\">400</td>", piece), "the status that the route would have answered"
    answers = one.get(f"{address}/files/output")
    assert int(answers.headers["content-length"]) == len(answers.content)
    assert sorted(json.loads(each)["custom_id"] for each in answers.text.splitlines()) == ["a", "c"]
    assert len(one.get(f"{address}/files/errors").text.splitlines()) == 2
    assert one.get(f"{address}/files/input").text == text_of(lines)
    assert one.get(f"{address}/files/other").status_code == 422
    row = one.get("/batches").text
    assert "tiny" in row
    assert re.search(rf'<a href="{re.escape(address)}">in\.jsonl</a>', row), "named after its file"
    assert re.search(r'href="[^"]*#failed">2<', row)


def test_wrong_forms_are_explained_and_leave_no_file(home: Context, browser: Browser) -> None:
    one = browser("read", "train", "infer")
    file = {"file": ("in.jsonl", b"{}\n")}
    for data, given, status, words in (
        ({"endpoint": CHAT}, None, 422, "no file was chosen"),
        ({"endpoint": "/v1/images"}, file, 422, "one of /v1/chat/completions"),
        ({"endpoint": CHAT, "hours": "1.5"}, file, 422, "a whole number of hours, 1 to 336"),
        ({"endpoint": CHAT, "hours": "337"}, file, 422, "a whole number of hours"),
        ({"endpoint": CHAT, "input_file_id": "file-none"}, {"file": ("", b"")}, 422, "file-none"),
    ):
        sent = one.post("/batches", data=data, files=given or {"file": ("", b"")})
        assert (sent.status_code, words in sent.text) == (status, True), (data, sent.text[:2000])
    assert files.list_files(home, "default")[0] == []
    assert one.post("/batches", data={"endpoint": CHAT}).status_code == 400, "no multipart form"


def test_scopes_and_other_projects(home: Context, browser: Browser) -> None:
    made = started(home, [line("a", "say one")])
    address = f"/batches/{made.batch.batch_id}"
    reader, trainer = browser("read"), browser("read", "train")
    for one in (reader, trainer):
        page = one.get(address).text
        assert "Cancel</button>" not in page
        assert "New batch" not in one.get("/batches").text
        assert one.post(f"{address}/cancel").status_code == 403
    assert "&lt;a&gt;" in page, "labels of the client"
    assert "by Ada." in page
    assert "<h1>Batch asked &lt;1&gt;.jsonl</h1>" in page
    file = {"file": ("in.jsonl", b"{}\n")}
    assert reader.post("/batches", data={"endpoint": CHAT}, files=file).status_code == 403
    assert trainer.post("/batches", data={"endpoint": CHAT}, files=file).status_code == 403
    assert browser("infer").get("/batches").status_code == 403
    create_project(home, "other")
    other = browser("read", "train", "infer", project="other")
    assert made.batch.batch_id not in other.get("/batches").text
    for path in ("", "/files/input", "/files/output"):
        assert other.get(f"{address}{path}").status_code == 404
    assert other.post(f"{address}/cancel").status_code == 404
    assert other.get(f"/batches?after={made.batch.batch_id}").status_code == 422
    stored = made.batch.input_file_id
    stolen = other.post("/batches", data={"endpoint": CHAT, "input_file_id": stored}, files={"file": ("", b"")})
    assert (stolen.status_code, home.batches.get("default", made.batch.batch_id).status) == (422, "validating")


def test_cancel_a_refused_file_and_a_failed_job(home: Context, browser: Browser) -> None:
    one = browser("read", "train", "infer")
    first = started(home, [line("a", "say one")])
    address = f"/batches/{first.batch.batch_id}"
    assert one.post(f"{address}/cancel").headers["location"] == address
    assert "Cancelled before the first answer." in one.get(address).text
    second = one.post(f"{address}/cancel")
    assert (second.status_code, "is cancelled" in second.text) == (409, True)
    assert one.get(f"{address}/files/output").status_code == 404
    refused = started(home, [line("a", "say one"), line("a", "say two")])
    worked(home)
    page = one.get(f"/batches/{refused.batch.batch_id}").text
    assert "Why the file was refused" in page
    assert re.search(r'<th scope="row" class="number">2</th><td><code>duplicate_custom_id</code>', page)
    broken = started(home, [line("a", "say one")])
    job = home.jobs.claim("w", ("infer",))
    assert job is not None
    error = {"type": "WorkError", "came": f"no room in {home.home}/jobs", "expected": "room", "do": "free some"}
    home.jobs.finish(job.job_id, job.attempt, "failed", error)
    page = one.get(f"/batches/{broken.batch.batch_id}").text
    assert "no room in jobs" in page
    assert str(home.home) not in page
    assert "data-look" not in page
    stopped = started(home, [line("a", "say one")])
    job = home.jobs.claim("w", ("infer",))
    assert job is not None
    assert "data-look" in one.get("/batches").text
    home.jobs.finish(job.job_id, job.attempt, "cancelled")
    page = one.get(f"/batches/{stopped.batch.batch_id}").text
    assert "data-look" not in page, "by the operator, whom the batch itself does not know"
    assert "a worker of the server continues" not in page
    assert "data-look" not in one.get("/batches").text, "nothing more happens to any of them"


def test_the_list_is_paged(home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.features.batches import pages

    monkeypatch.setattr(pages, "_A_PAGE", 2)
    made = [started(home, [line("a", "say one")]).batch.batch_id for _ in range(3)]
    one = browser("read")
    first = one.get("/batches").text
    assert [f"/batches/{each}" in first for each in made] == [False, True, True]
    older = re.search(r'href="(/batches\?after=[^"]+)"', first)
    assert older is not None
    assert [f"/batches/{each}" in one.get(older[1]).text for each in made] == [True, False, False]


def test_errors_are_paged_by_offset_while_the_file_grows(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    view = started(home, [line("a", "say one")])
    folder = home.settings.jobs_folder / view.job.job_id
    folder.mkdir(parents=True)
    made = [
        {"custom_id": None, "response": None, "error": {"code": "x", "message": "é" * n, "line": n}}
        for n in range(1, 8)
    ]
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made)
    (folder / ERRORS_NAME).write_text(text + '{"custom_id": "half', encoding="utf-8")
    found, offset = [], 0
    for _ in range(4):
        page = error_page(home, view, offset=offset, limit=3)
        found += [each.line for each in page.errors]
        if page.next_offset is None:
            break
        offset = page.next_offset
    assert found == [1, 2, 3, 4, 5, 6, 7], "the line that is being written is left out"
    inside = error_page(home, view, offset=5, limit=1)
    assert [each.line for each in inside.errors] == [2], "an offset within a line begins with the next one"
    assert error_page(home, view, offset=10**9).errors == ()
    monkeypatch.setattr(progress, "_MAX_LINE_BYTES", 8)
    assert error_page(home, view).errors == (), "a line of any length takes no memory"


def test_the_time_left_follows_the_mean_speed(home: Context) -> None:
    view = started(home, [line("a", "say one")])
    assert seconds_left(view, 100.0) is None
    running = view.job.model_copy(update={"status": "running"})
    values = {"status": "in_progress", "num_total": 100, "num_completed": 20, "num_failed": 5, "in_progress_at": 50.0}
    batch = view.batch.model_copy(update=values)
    assert seconds_left(BatchView(batch, running), 100.0) == pytest.approx(150.0), "75 of 100 at 25 in 50 s"
    assert seconds_left(BatchView(batch, view.job), 100.0) is None, "nothing is known while it waits"
