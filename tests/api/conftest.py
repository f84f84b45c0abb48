"""The server of a home in a temporary folder, asked without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from luthier.api.app import create_app
from luthier.core.access import Scope
from luthier.service.access import create_key
from luthier.service.context import Context

Visitor = Callable[..., TestClient]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Context]:
    with Context.open(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def visitor(home: Context) -> Iterator[Visitor]:
    """Makes a client that asks from this address with a key of these scopes; no scopes: without a key."""
    app, made = create_app(home), []

    def make(*scopes: Scope, project: str = "default", address: str = "192.0.2.7") -> TestClient:
        one = TestClient(app, client=(address, 50000))
        if scopes:
            one.headers["Authorization"] = f"Bearer {create_key(home, 'k', scopes=scopes, project=project)[1]}"
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
