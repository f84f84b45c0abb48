"""The address of the protocol has the gate of the API: keys, rates, sizes, origins; and no sessions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.api import Visitor
from tests.vacuous import nonempty

from luthier.features.models.result_files import keep_report
from luthier.platform.auth.service import create_key, revoke_key
from luthier.platform.home.context import Context
from luthier.server.api import create_app

ACCEPT = {"Accept": "application/json, text/event-stream"}
INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "a test", "version": "1"},
}


def asked(client: TestClient, method: str, params: dict[str, Any] | None = None, **headers: str) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
    return client.post("/mcp", json=body, headers=ACCEPT | headers)


def document(answer: Any) -> dict[str, Any]:
    """The message of an answer, which comes as JSON or as the one event of a stream."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("application/json"):
        found: dict[str, Any] = answer.json()
        return found
    (line,) = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return event


def test_without_a_key_nothing_is_read(visitor: Visitor) -> None:
    for headers in ({}, {"Authorization": "Bearer sk-luthier-wrong"}):
        answer = visitor().post("/mcp", content=b"x" * 10, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "invalid_request_error")
    assert "WWW-Authenticate" in visitor().post("/mcp").headers


def test_a_client_of_an_earlier_protocol_lists_the_tools_of_its_scopes(visitor: Visitor) -> None:
    reader = visitor("read")
    started = document(asked(reader, "initialize", INITIALIZE))["result"]
    assert (started["serverInfo"]["name"], started["protocolVersion"]) == ("luthier", "2025-06-18")
    tools = document(asked(reader, "tools/list"))["result"]["tools"]
    names = {tool["name"] for tool in tools}
    assert {"list_runs", "watch", "get_verdict"} <= names
    assert not {"start_run", "ask", "deploy"} & names
    for tool in nonempty(tools):
        assert tool["annotations"]["readOnlyHint"] is True
        assert tool["inputSchema"]["type"] == "object"
    found = document(asked(reader, "tools/call", {"name": "list_datasets", "arguments": {}}))["result"]
    assert found["structuredContent"] == {"datasets": []}
    assert [part["text"] for part in found["content"]] == ["0 datasets.", '{"datasets":[]}']


def test_there_are_no_sessions(visitor: Visitor) -> None:
    client = visitor("read")
    assert "mcp-session-id" not in asked(client, "initialize", INITIALIZE).headers
    for method in ("GET", "DELETE"):
        assert client.request(method, "/mcp", headers=ACCEPT).status_code == 405


def test_a_page_of_another_site_is_refused(visitor: Visitor) -> None:
    client = visitor("admin")
    answer = asked(client, "tools/list", Origin="https://elsewhere.example")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert document(asked(client, "tools/list", Origin="http://testserver"))["result"]["tools"]


def test_what_is_too_large_or_no_message_is_refused(visitor: Visitor) -> None:
    client = visitor("admin")
    rows = {"name": "create_dataset", "arguments": {"name": "x", "rows": [{"text": "x" * (5 << 20)}]}}
    assert asked(client, "tools/call", rows).status_code == 413
    assert client.post("/mcp", content=b"{", headers=ACCEPT | {"Content-Type": "application/json"}).status_code == 400
    assert client.post("/mcp", json=[], headers=ACCEPT).status_code == 400
    assert client.post("/mcp", json={}, headers={"Accept": "text/html"}).status_code == 406
    unknown = document(asked(client, "tools/call", {"name": "train_everything"}))["error"]
    assert unknown["code"] == -32602
    assert "no tool 'train_everything'" in unknown["message"]


def test_requests_count_against_the_rate_of_the_key_and_end_with_it(home: Context) -> None:
    made, key = create_key(home, "slow", scopes=("read",), requests_per_minute=2)
    with TestClient(create_app(home), headers={"Authorization": f"Bearer {key}"}) as client:
        assert asked(client, "tools/list").headers["x-ratelimit-remaining-requests"] == "1"
        assert asked(client, "tools/list").status_code == 200
        assert asked(client, "tools/list").status_code == 429
    revoke_key(home, made.key_id)
    with TestClient(create_app(home), headers={"Authorization": f"Bearer {key}"}) as client:
        assert asked(client, "tools/list").status_code == 401


def test_resources_are_those_of_the_project(home: Context, visitor: Visitor) -> None:
    from tests import homes

    run_id = homes.fill(home).runs[1]
    report = home.settings.run_folder(run_id) / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(f"<p>trained in {home.home}/runs</p>", encoding="utf-8")
    reader, uri = visitor("read"), f"luthier://runs/{run_id}/report"
    listed = [one["uri"] for one in document(asked(reader, "resources/list"))["result"]["resources"]]
    assert listed == ["luthier://recipe-schema", uri]
    (content,) = document(asked(reader, "resources/read", {"uri": uri}))["result"]["contents"]
    assert content["mimeType"] == "text/html"
    assert str(home.home) not in content["text"]
    keep_report(home, run_id)
    report.unlink()  # as where another machine has trained it
    listed = [one["uri"] for one in document(asked(reader, "resources/list"))["result"]["resources"]]
    assert uri in listed
    schema = document(asked(reader, "resources/read", {"uri": "luthier://recipe-schema"}))["result"]["contents"][0]
    assert "base_model" in json.loads(schema["text"])["properties"]
    templates = document(asked(reader, "resources/templates/list"))["result"]["resourceTemplates"]
    assert "luthier://runs/{run_id}/verdict" in [one["uriTemplate"] for one in templates]
    home.access.add_project("proj-other", "other")
    for other, wanted in (
        (visitor("read", project="other"), uri),
        (visitor("infer"), uri),
        (reader, "luthier://runs/../../etc/passwd/report"),
        (reader, "file:///etc/passwd"),
    ):
        assert "What to do:" in document(asked(other, "resources/read", {"uri": wanted}))["error"]["message"]


@pytest.mark.parametrize("path", ["/mcp/", "/mcp/x"])
def test_there_is_one_address(visitor: Visitor, path: str) -> None:
    assert visitor("admin").post(path, json={}).status_code == 404
