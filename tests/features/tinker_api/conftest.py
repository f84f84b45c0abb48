"""A stand-in for the process that trains: it answers when a test says so."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import LuthierError
from luthier.features.tinker_api.sessions import TinkerSessions
from luthier.features.tinker_api.trainer_client import OnAnswer, TrainerClient
from luthier.platform.home.settings import Settings


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
