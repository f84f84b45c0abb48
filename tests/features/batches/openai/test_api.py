"""Batches over HTTP: files in, files out, in the form of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.echo_engine import answering
from tests.fixtures.openai import ok
from tests.vacuous import nonempty

from luthier.features.batches import job as batch_job
from luthier.platform.home.context import Context

CHAT = "/v1/chat/completions"


@pytest.fixture
def client(client_of: Callable[..., TestClient]) -> TestClient:
    return client_of()


def line(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked}


def upload(client: TestClient, lines: list[Any], purpose: str = "batch") -> str:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    answer = client.post("/v1/files", files={"file": ("in.jsonl", text.encode())}, data={"purpose": purpose})
    return str(ok(answer)["id"])


def started(client: TestClient, lines: list[Any], **changes: Any) -> dict[str, Any]:
    body = {"input_file_id": upload(client, lines), "endpoint": CHAT, "completion_window": "24h"} | changes
    return ok(client.post("/v1/batches", json=body))


def worked(home: Context) -> None:
    job = home.jobs.claim("here", ("infer",))
    assert job is not None
    outcome = batch_job.carry_out(home, job)
    assert outcome.status != "validated"
    home.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)


def lines_of(client: TestClient, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(one) for one in client.get(f"/v1/files/{file_id}/content").text.splitlines()]


def test_every_line_is_answered_or_has_its_error(client: TestClient, home: Context) -> None:
    answering(home)
    lines = [
        line("a", "say one"),
        "this is not JSON",
        line("b", "say two", temperature=7),
        line("c", "say three", model="none"),
        line("d", "say four") | {"url": "/v1/embeddings"},
        line("e", "say five") | {"method": "GET"},
        line("f", "say six", stream=True),
        {"custom_id": 7},
        line("g", "say seven"),
    ]
    batch = started(client, lines, metadata={"k": "v"})
    assert (batch["object"], batch["status"], batch["metadata"]) == ("batch", "validating", {"k": "v"})
    assert batch["expires_at"] - batch["created_at"] == 24 * 3600
    worked(home)
    batch = ok(client.get(f"/v1/batches/{batch['id']}"))
    assert (batch["status"], batch["errors"]) == ("completed", None)
    assert batch["request_counts"] == {"total": 9, "completed": 2, "failed": 7}
    assert (batch["usage"]["input_tokens"], batch["usage"]["output_tokens"]) == (6, 4)
    assert batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    answers = {one["custom_id"]: one for one in lines_of(client, batch["output_file_id"])}
    assert sorted(answers) == ["a", "g"]
    assert answers["a"]["error"] is None
    response = answers["a"]["response"]
    assert (response["status_code"], response["body"]["object"]) == (200, "chat.completion")
    assert response["body"]["choices"][0]["message"]["content"] == "one"
    errors = {one["custom_id"] or one["error"]["line"]: one for one in lines_of(client, batch["error_file_id"])}
    assert sorted(map(str, errors)) == ["2", "8", "b", "c", "d", "e", "f"]
    assert errors[2]["error"]["code"] == "invalid_line"
    assert errors["b"]["response"]["status_code"] == 400
    assert errors["b"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["c"]["response"]["body"]["error"]["code"] == "model_not_found"
    assert errors["d"]["error"]["code"] == "invalid_url"
    assert errors["f"]["response"]["body"]["error"]["param"] == "stream"
    stored = ok(client.get(f"/v1/files/{batch['output_file_id']}"))
    assert (stored["purpose"], stored["filename"]) == ("batch_output", f"{batch['id']}_output.jsonl")


def test_a_line_with_unknown_keys_in_messages_is_answered_with_a_warning(client: TestClient, home: Context) -> None:
    answering(home)
    turn = {"role": "user", "content": "say one", "weight": 0}
    batch = started(client, [line("a", "say one", messages=[turn]), line("b", "say two")])
    worked(home)
    found = lines_of(client, ok(client.get(f"/v1/batches/{batch['id']}"))["output_file_id"])
    answers = {one["custom_id"]: one["response"] for one in found}
    assert sorted(answers) == ["a", "b"]
    assert answers["a"]["body"]["choices"][0]["message"]["content"] == "one"
    assert answers["a"]["warning"].endswith('were not read: "weight"')
    assert "warning" not in answers["b"]


def test_completions_and_embeddings(client: TestClient, home: Context) -> None:
    answering(home)
    completion = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "tiny", "prompt": "x y"},
    }
    batch = started(client, [completion], endpoint="/v1/completions", output_expires_after={
        "anchor": "created_at", "seconds": 3600})  # fmt: skip
    worked(home)
    batch = ok(client.get(f"/v1/batches/{batch['id']}"))
    (made,) = lines_of(client, batch["output_file_id"])
    assert made["response"]["body"]["choices"][0]["text"] == "y"
    file = ok(client.get(f"/v1/files/{batch['output_file_id']}"))
    assert file["expires_at"] - file["created_at"] == 3600
    embedding = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "tiny", "input": ["x", "y"]},
    }
    batch = started(client, [embedding], endpoint="/v1/embeddings")
    worked(home)
    (made,) = lines_of(client, ok(client.get(f"/v1/batches/{batch['id']}"))["output_file_id"])
    assert [one["embedding"] for one in made["response"]["body"]["data"]] == [[1.0, 0.0], [1.0, 0.0]]


def test_responses(client: TestClient, home: Context) -> None:
    answering(home)
    stored = ok(client.post("/v1/responses", json={"model": "tiny", "input": "say hello"}))
    wishes: list[dict[str, Any]] = [
        {"input": "say one"},
        {"input": [{"role": "user", "content": "say two"}], "previous_response_id": stored["id"]},
        {"input": "say three", "store": True},
        {"input": "say four", "previous_response_id": "resp_none"},
        {"input": "say five", "tools": [{"type": "web_search"}]},
        {"input": "say six", "conversation": ok(client.post("/v1/conversations", json={}))["id"]},
    ]
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/responses", "body": {"model": "tiny", **wish}}
        for n, wish in enumerate(wishes)
    ]
    batch = started(client, lines, endpoint="/v1/responses")
    worked(home)
    batch = ok(client.get(f"/v1/batches/{batch['id']}"))
    assert batch["request_counts"] == {"total": 6, "completed": 2, "failed": 4}
    assert (batch["usage"]["input_tokens"], batch["usage"]["output_tokens"]) == (6, 4)
    answers = {one["custom_id"]: one["response"]["body"] for one in lines_of(client, batch["output_file_id"])}
    assert sorted(answers) == ["0", "1"]
    assert answers["0"]["output"][0]["content"][0]["text"] == "one"
    assert (answers["0"]["object"], answers["0"]["status"], answers["0"]["store"]) == ("response", "completed", False)
    assert answers["1"]["previous_response_id"] == stored["id"]
    errors = {one["custom_id"]: one["response"]["body"]["error"] for one in lines_of(client, batch["error_file_id"])}
    assert {name: error["param"] for name, error in errors.items()} == {
        "2": "store",
        "3": "previous_response_id",
        "4": "tools.0.type",
        "5": "conversation",
    }


@pytest.mark.parametrize(
    ("lines", "code", "at"),
    [
        ([line("a", "x"), line("b", "y"), line("a", "z")], "duplicate_custom_id", 3),
        ([""], "empty_file", None),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(
    client: TestClient, home: Context, lines: list[Any], code: str, at: int | None
) -> None:
    engine = answering(home)
    batch = started(client, lines)
    worked(home)
    batch = ok(client.get(f"/v1/batches/{batch['id']}"))
    assert (batch["status"], batch["failed_at"] is not None) == ("failed", True)
    (error,) = batch["errors"]["data"]
    assert (error["code"], error["line"]) == (code, at)
    assert engine.asked == []


def test_why_the_job_of_a_batch_has_crashed_names_no_place_of_this_machine(
    client: TestClient, home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.platform.jobs.store.MOST_CRASHES", 1)
    batch = started(client, [line("a", "x")])
    job = home.jobs.claim("here", ("infer",))
    assert job is not None
    home.jobs.crash(job.job_id, job.attempt, f"exit code 1: no space for {home.home}/jobs/x")
    found = ok(client.get(f"/v1/batches/{batch['id']}"))
    (error,) = found["errors"]["data"]
    assert (found["status"], error["code"]) == ("failed", "batch_failed")
    assert "exit code 1: no space for jobs/x" in error["message"]
    assert str(home.home) not in str(found)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"endpoint": "/v1/images/generations"}, "endpoint", "invalid_value"),
        ({"completion_window": "1 week"}, "completion_window", "invalid_value"),
        ({"completion_window": "337h"}, "completion_window", "invalid_value"),
        ({"input_file_id": "file-none"}, "input_file_id", "invalid_file"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds",
         "invalid_value"),
        ({"priority": 1}, "priority", "unknown_parameter"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_carried_out_is_refused_by_name(
    client: TestClient, changes: dict[str, Any], param: str, code: str
) -> None:
    body = {"input_file_id": upload(client, [line("a", "x")]), "endpoint": CHAT, "completion_window": "24h"} | changes
    answer = client.post("/v1/batches", json=body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_a_file_of_another_purpose_is_refused(client: TestClient) -> None:
    file_id = upload(client, [line("a", "x")], purpose="fine-tune")
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    assert "purpose fine-tune" in client.post("/v1/batches", json=body).json()["error"]["message"]


def test_a_batch_that_waits_is_cancelled_immediately(client: TestClient) -> None:
    batch = started(client, [line("a", "x")])
    cancelled = ok(client.post(f"/v1/batches/{batch['id']}/cancel"))
    assert (cancelled["status"], cancelled["cancelled_at"] is not None) == ("cancelled", True)
    again = client.post(f"/v1/batches/{batch['id']}/cancel")
    assert (again.status_code, again.headers["x-should-retry"]) == (409, "false")


def test_usage_has_cached_and_reasoning_tokens(client: TestClient, home: Context) -> None:
    engine = answering(home)
    engine.num_cached, engine.num_thinking = 2, 1
    response = {"url": "/v1/responses", "body": {"model": "tiny", "input": "say one"}}
    for lines, changes in (
        ([line("a", "say one"), line("b", "say two", n=2)], {}),
        ([line(custom_id, "") | response for custom_id in "ab"], {"endpoint": "/v1/responses"}),
    ):
        batch = started(client, lines, **changes)
        worked(home)
        usage = ok(client.get(f"/v1/batches/{batch['id']}"))["usage"]
        num_answers = 3 if not changes else 2
        assert usage == {
            "input_tokens": 6,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 2 * num_answers,
            "output_tokens_details": {"reasoning_tokens": num_answers},
            "total_tokens": 6 + 2 * num_answers,
        }


def test_pages_and_other_projects_and_scopes(client: TestClient, client_of: Callable[..., TestClient]) -> None:
    ids = [started(client, [line("a", "x")])["id"] for _ in range(3)]
    listed = ok(client.get("/v1/batches?limit=2"))
    assert ([one["id"] for one in listed["data"]], listed["has_more"]) == (ids[:0:-1], True)
    assert [one["id"] for one in ok(client.get(f"/v1/batches?after={ids[1]}"))["data"]] == ids[:1]
    other = client_of("other")
    assert ok(other.get("/v1/batches"))["data"] == []
    for method, path in nonempty([("GET", f"/v1/batches/{ids[0]}"), ("POST", f"/v1/batches/{ids[0]}/cancel")]):
        assert other.request(method, path).status_code == 404
    file_id = upload(client, [line("a", "x")])
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    assert other.post("/v1/batches", json=body).json()["error"]["code"] == "invalid_file"
    wrong = other.get(f"/v1/batches?after={ids[0]}")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "after")
    reader, trainer = client_of("default", ("read",)), client_of("default", ("train",))
    assert ok(reader.get(f"/v1/batches/{ids[0]}"))["id"] == ids[0]
    assert reader.post("/v1/batches", json=body).status_code == 403
    assert reader.post(f"/v1/batches/{ids[0]}/cancel").status_code == 403
    assert trainer.post("/v1/batches", json=body).status_code == 403
    assert ok(client_of("default", ("infer",)).post("/v1/batches", json=body))["status"] == "validating"
