"""What stands around every answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

MakeClient = Callable[..., TestClient]


@pytest.mark.parametrize("path", ["/v1/things", "/v1/nowhere", "/v1/bug", "/page", "/openapi.json"])
def test_every_answer_has_an_id_and_hardening_headers(client: MakeClient, path: str) -> None:
    answer = client().get(path)
    assert answer.headers["x-request-id"].startswith("req_")
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert ("default-src 'self'" if path == "/page" else "default-src 'none'") in answer.headers[
        "content-security-policy"
    ]


def test_no_page_of_another_origin_may_read(client: MakeClient) -> None:
    origin = {"Origin": "https://evil.example"}
    asked = client().options("/v1/things", headers={**origin, "Access-Control-Request-Method": "GET"})
    for answer in (asked, client().get("/v1/things", headers=origin)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_bug_is_told_as_ours_and_logged_by_its_id(client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = client().get("/v1/bug")
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert answer.headers["x-should-retry"] == "false"
    assert "0123456789" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text


def test_an_answer_that_breaks_off_is_not_made_to_look_whole(client: MakeClient) -> None:
    with pytest.raises(KeyError):
        client().get("/v1/broken-stream")


def test_a_client_names_its_request_for_the_log_alone(client: MakeClient) -> None:
    asker = client()
    given = asker.get("/v1/ids", headers={"X-Client-Request-Id": "mine-1", "X-Request-Id": "forged"})
    assert given.json() == {"request": given.headers["x-request-id"], "client": "mine-1"}
    assert given.headers["x-request-id"] != "forged"
    for unfit in ("x" * 513, "a\tb"):
        assert asker.get("/v1/ids", headers={"X-Client-Request-Id": unfit}).json()["client"] is None
