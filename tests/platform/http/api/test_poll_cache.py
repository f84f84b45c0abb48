"""Answers to polls come from memory while nothing has changed, and never from before what has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.features.finetuning_api import service as fine_tuning
from luthier.platform.auth.service import create_key, list_keys, revoke_key
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.server.api import create_app

JOBS = "/v1/fine_tuning/jobs"
Visitor = Callable[..., TestClient]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of jobs, in order, each time that the database was asked for one."""
    asked: list[str] = []
    ask = fine_tuning.get

    def noted(context: Context, caller: Any, job_id: str) -> Job:
        asked.append(job_id)
        return ask(context, caller, job_id)

    monkeypatch.setattr(fine_tuning, "get", noted)
    return asked


def submit(home: Context, job_id: str = "ftjob-1", project: str = "default") -> str:
    request = {"model": "tiny", "training_file": "file-1", "seed": 1}
    document = {"request": request, "base_model": "tiny"}
    home.jobs.submit(
        Job(job_id=job_id, kind="train", document=document, run_id=f"run-{job_id}", project_id=project, lane="validate")
    )
    return f"{JOBS}/{job_id}"


def shown(client: TestClient, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_has_not_changed_is_read_once(visitor: Visitor, home: Context, reads: list[str]) -> None:
    job, client = submit(home), visitor("read")
    first = client.get(job)
    again = client.get(job)
    assert reads == ["ftjob-1"]
    assert first.json() == again.json()
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert {name for name in first.headers if name != "date"} == {name for name in again.headers if name != "date"}
    assert again.headers["content-length"] == str(len(again.content))
    shown(client, f"{job}/events")
    shown(client, f"{job}/events?limit=1")
    assert len(shown(client, f"{job}/events?limit=1")["data"]) == 1, "another page is another answer"


def test_a_write_of_anybody_ends_what_was_kept(visitor: Visitor, home: Context, reads: list[str]) -> None:
    job, client = submit(home), visitor("read")
    assert shown(client, job)["status"] == "validating_files"
    with Context.open(home.home) as other:  # connections of their own, as another process has
        other.job_events.append("ftjob-1", "told", "something")
        assert shown(client, f"{job}/events")["data"][0]["message"] == "something"
        other.jobs.ask("ftjob-1", "cancel")
    assert shown(client, job)["status"] == "cancelled"
    assert shown(client, f"{JOBS}")["data"][0]["status"] == "cancelled"


def test_projects_and_scopes_share_nothing(visitor: Visitor, home: Context) -> None:
    home.access.add_project("proj-b", "b")
    job = submit(home)
    ours, theirs, asker = visitor("read"), visitor("read", project="b"), visitor("infer")
    for _ in range(2):
        assert ours.get(job).status_code == 200
        assert theirs.get(job).status_code == 404
        assert asker.get(job).status_code == 403
        assert len(shown(ours, JOBS)["data"]) == 1
        assert shown(theirs, JOBS)["data"] == []


def test_errors_are_not_kept(visitor: Visitor, home: Context) -> None:
    client = visitor("read")
    assert client.get(f"{JOBS}/ftjob-1").status_code == 404
    assert client.get(f"{JOBS}/ftjob-1/events?limit=0").status_code == 400
    submit(home)
    assert client.get(f"{JOBS}/ftjob-1").status_code == 200


def test_a_key_that_is_revoked_polls_no_more(visitor: Visitor, home: Context) -> None:
    job, client = submit(home), visitor("read")
    assert client.get(job).status_code == 200
    assert client.get(job).status_code == 200
    with Context.open(home.home) as other:
        revoke_key(other, list_keys(other)[0].key_id)
    refused = client.get(job)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers["x-request-id"]
    assert client.get("/v1/files").status_code == 401, "and does nothing else, either"


def test_answers_from_memory_count_on_the_limit_and_in_the_metrics(home: Context) -> None:
    job = submit(home)
    key = create_key(home, "few", scopes=("read",), requests_per_minute=3)[1]
    client = TestClient(create_app(home), headers={"Authorization": f"Bearer {key}"}, client=("127.0.0.1", 1))
    answers = [client.get(job) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:3]] == ["2", "1", "0"]
    line = 'luthier_http_requests_total{method="GET",route="/v1/fine_tuning/jobs/{job_id}",status="200"} 3.0'
    assert line in client.get("/metrics").text


def test_a_database_that_cannot_be_watched_is_asked_each_time(
    visitor: Visitor, home: Context, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, client = submit(home), visitor("read")
    monkeypatch.setattr("luthier.platform.db.sqlite._SqliteWatch.look", lambda *_: None)
    assert shown(client, job) == shown(client, job)
    assert len(reads) == 2


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def polled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Context, Context, TestClient, str]]:
    """A home as the server has it open, as another process has it open, a client, and the path of a job."""
    place, variable = tmp_path_factory.mktemp("polled") / "home", pytest.MonkeyPatch()
    if request.param == "postgresql":
        variable.setenv("LUTHIER_DATABASE", request.getfixturevalue("postgresql").new_database())
    with Context.open(place) as home, Context.open(place) as other:
        assert home.database.is_quick == (request.param == "sqlite")
        variable.undo()
        key = create_key(home, "k", scopes=("read",))[1]
        with TestClient(create_app(home), headers={"Authorization": f"Bearer {key}"}) as client:
            yield home, other, client, submit(home)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["here", "there", "read", "read", "nothing"]), max_size=12))
def test_every_read_sees_every_write_before_it(
    polled: tuple[Context, Context, TestClient, str], deeds: list[str]
) -> None:
    home, other, client, job = polled
    for deed in deeds:
        if deed == "nothing":  # a transaction that writes nothing
            home.webhooks.announce()
        elif deed != "read":
            written = home if deed == "here" else other
            number = len(home.job_events.page("ftjob-1")[0])
            assert written.job_events.append("ftjob-1", f"code-{number}", f"event {number}")
        newest = home.job_events.page("ftjob-1", limit=1)[0][0]
        assert shown(client, f"{job}/events?limit=5")["data"][0]["id"] == newest.event_id


def test_reads_of_many_at_once_see_what_was_written_before_them(
    polled: tuple[Context, Context, TestClient, str],
) -> None:
    """Each reader notes what was written before it asks, and must see at least that."""
    _, other, client, job = polled
    written, stop, wrong = [len(other.job_events.page("ftjob-1")[0])], threading.Event(), list[str]()

    def read() -> None:
        while not stop.is_set():
            least = written[-1]
            data = shown(client, f"{job}/events?limit=1000")["data"]
            if len(data) < least:
                wrong.append(f"{len(data)} of {least}")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(60):
        other.job_events.append("ftjob-1", f"many-{number}", f"many {number}")
        written.append(written[-1] + 1)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
