"""The app of `luthier serve`: nobody needs a key where all may come in, and nothing of a home is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from luthier.core.stream import Served
from luthier.platform.auth.authenticator import StaticKeyAuthenticator
from luthier.platform.home.context import Context
from luthier.server.api import create_app


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Context]:
    with Context.open(tmp_path / "home") as opened:
        opened.only = {"named": Served(path=str(tmp_path), sha256="")}
        yield opened


def test_all_may_ask_where_it_is_open(home: Context) -> None:
    app = create_app(home, authenticator=StaticKeyAuthenticator(home, (), is_open=True))
    with TestClient(app) as client:
        for headers in ({}, {"Authorization": "Bearer anything"}):
            listed = client.get("/v1/models", headers=headers)
            assert [one["id"] for one in listed.json()["data"]] == ["named"]
        assert client.get("/v1/models/named").json()["owned_by"] == "system"
        assert client.get("/v1/models/tiny").status_code == 404
        assert client.delete("/v1/models/named").status_code == 403
        for place in ("/v1/files", "/v1/fine_tuning/jobs", "/api/v1/keys", "/api/v1/deployments", "/api/v1/usage"):
            assert client.get(place).status_code == 404, place
        assert client.get("/healthz").status_code == 200


def test_with_keys_nobody_comes_in_without_one(home: Context) -> None:
    with TestClient(create_app(home, authenticator=StaticKeyAuthenticator(home, ("0" * 64,), is_open=False))) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer x"}).status_code == 401
