"""Fixtures of this surface, shared by all features; and a home that takes files of up to 100,000 bytes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.features.files.openai.clients import signed_in
from tests.fixtures.openai import client_of, home  # noqa: F401

from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with Context.open(tmp_path / "home") as opened:
        opened.settings = Settings(home=opened.home, max_file_bytes=100_000)
        yield opened


@pytest.fixture
def client(context: Context) -> Iterator[TestClient]:
    yield from signed_in(context, "default", "train", "read")


@pytest.fixture
def stranger(context: Context) -> Iterator[TestClient]:
    context.access.add_project("proj-other", "other")
    yield from signed_in(context, "other", "train", "read")
