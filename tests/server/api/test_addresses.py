"""Clients of the API whose `base_url` has no `/v1`, or one too many, learn so from the error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.ports import SilentProgress
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app
from luthier.server.pages import create_pages

JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    home: Path = tmp_path_factory.mktemp("addresses")
    with Context(Settings(home=home), SilentProgress()) as context:
        _, key = create_key(context, "k", scopes=("infer", "read"))
        app = create_app(context, pages=create_pages(context))
        with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as made:
            yield made


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/chat/completions", "expected: /v1/chat/completions; what to do: let the base_url"),
        ("GET", "/models", "expected: /v1/models; what to do: let the base_url"),
        ("POST", "/fine_tuning/jobs", "expected: /v1/fine_tuning/jobs; what to do: let the base_url"),
        ("POST", "/v1/v1/messages", "expected: /v1/messages; what to do: leave /v1 out of the base_url"),
        ("GET", "/v1/nothing", "no such address: GET /v1/nothing"),
    ],
)
def test_an_address_without_its_version_is_answered_with_it(
    client: TestClient, method: str, path: str, expected: str
) -> None:
    answer = client.request(method, path, headers=JSON, **({"json": {}} if method == "POST" else {}))
    document: dict[str, Any] = answer.json()
    assert answer.status_code == 404
    assert expected in str(document), document


def test_browsers_get_pages_whatever_a_proxy_adds(client: TestClient) -> None:
    for accept in ("text/html,application/xhtml+xml,application/json;q=0.9", "*/*"):
        answer = client.get("/models", headers={"Accept": accept}, follow_redirects=False)
        asks_to_sign_in = answer.headers.get("location", "") + answer.headers.get("hx-redirect", "")
        assert asks_to_sign_in.startswith("/sign-in"), answer.text[:200]
    assert client.get("/models", headers=JSON | {"Authorization": ""}).status_code != 404
