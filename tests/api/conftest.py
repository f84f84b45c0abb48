"""The app of a home that lies in a temporary folder, asked without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from luthier.api.app import create_app
from luthier.core.access import Scope
from luthier.service.access import create_key
from luthier.service.context import Context

Client = Callable[..., TestClient]


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with Context.open(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def client(context: Context) -> Iterator[Client]:
    """Makes a client with a key of these scopes; no scopes: without a key."""
    app, clients = create_app(context), []

    def make(*scopes: Scope, project: str = "default", address: str = "192.0.2.7") -> TestClient:
        made = TestClient(app, client=(address, 50000), raise_server_exceptions=False)
        if scopes:
            made.headers["Authorization"] = f"Bearer {create_key(context, 'k', scopes=scopes, project=project)[1]}"
        clients.append(made)
        return made

    yield make
    for made in clients:
        made.close()
