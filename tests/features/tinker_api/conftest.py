"""A stand-in for the process that trains: it answers when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.errors import LuthierError
from luthier.features.models.service import pull_model
from luthier.features.tinker_api.sessions import TinkerSessions
from luthier.features.tinker_api.trainer_client import OnAnswer, TrainerClient
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings

API = "/tinker/api/v1"
Visitor = Callable[..., TestClient]


class HeldTrainer(TrainerClient):
    """Keeps what it is asked.

    Attributes:
        asked: requests with their callbacks, in order.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], OnAnswer | None]] = []

    @property
    def pid(self) -> int | None:
        return 1

    def ask(self, request: dict[str, Any], done: OnAnswer | None) -> None:
        self.asked.append((request, done))

    def answer(self, result: dict[str, Any] | None = None, error: LuthierError | None = None) -> dict[str, Any]:
        """Answer the oldest request, and return it."""
        request, done = self.asked.pop(0)
        assert done is not None
        done({} if result is None and error is None else result, error)
        return request

    def close(self) -> None:
        """There is nothing to end."""


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trainer() -> HeldTrainer:
    return HeldTrainer()


@pytest.fixture
def sessions(clock: Clock, trainer: HeldTrainer) -> TinkerSessions:
    made = TinkerSessions(Settings(), clock=clock)
    made.trainer = trainer
    return made


@pytest.fixture
def client(home: Context, visitor: Visitor, trainer: HeldTrainer, tiny_model: Path) -> TestClient:
    """A client with all scopes of a server whose process that trains is held."""
    pull_model(home, str(tiny_model))
    home.tinker_sessions.trainer = trainer
    return visitor("train", "infer", "read")


def post(client: TestClient, path: str, status: int = 200, /, **body: Any) -> Any:
    """The answer to a call, which has this status."""
    answer = client.post(f"{API}{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def new_session(client: TestClient) -> str:
    """The id of a session that was opened."""
    return str(post(client, "/create_session", tags=[], user_metadata={}, sdk_version="0.38.0")["session_id"])
