"""What sessions of the Tinker API hold in the memory of the server: clients, requests, results and download tokens."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller, Scope
from luthier.core.errors import LuthierError, NotFoundError


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a request.

    Attributes:
        document: as JSON; None for a message of Protocol Buffers.
        message: that message.
        error: what went wrong; None for a result.
    """

    document: dict[str, Any] | None = None
    message: bytes = b""
    error: LuthierError | None = None


@dataclass(slots=True)
class PendingRequest:
    """A request and, once it is done, its result.

    Attributes:
        num_bytes: of the request while it waits, then of its result.
        scope: what a key needs to send it and to fetch its result.
    """

    request_id: str
    project_id: str
    session_id: str
    num_bytes: int
    scope: Scope = "train"
    result: Future[Answer] = field(default_factory=Future)
    fetched_at: float | None = None


@dataclass(slots=True)
class LiveModel:
    """A training client.

    Attributes:
        next_number: of the request that is sent next.
        waiting: requests that came before their turn, by number.
        waits_since: when a gap in the numbers was seen first; None where there is none.
        is_lost: whether the process that held its weights has ended.
    """

    model_id: str
    session_id: str
    next_number: int = 1
    waiting: dict[int, tuple[PendingRequest, Callable[[], None]]] = field(default_factory=dict)
    waits_since: float | None = None
    is_lost: bool = False


@dataclass(slots=True)
class LiveSampler:
    """A sampling client.

    Attributes:
        source: where its weights are, for the process that trains.
        base_model: as the client sees it.
        model_path: address of the saved weights, as the client sees it; None for the base model alone.
        num_clients: copies of it in other processes of the user, with itself.
    """

    sampler_id: str
    session_id: str
    source: dict[str, Any]
    base_model: str
    model_path: str | None = None
    num_clients: int = 1


@dataclass(slots=True)
class LiveSession:
    """A session. caller: who opened it. seen_at: of the last sign of life."""

    session_id: str
    caller: Caller
    seen_at: float
    models: dict[str, LiveModel] = field(default_factory=dict)
    samplers: dict[str, LiveSampler] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)


_KEEP_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Download:
    """What a token opens.

    Attributes:
        folder: Of the adapter.
        base_name: The name of its base model, for people.
        expires_at: Seconds since 1970.
    """

    folder: Path
    base_name: str
    expires_at: float


@dataclass(slots=True)
class DownloadTokens:
    """The tokens of addresses, in the memory of this process. Thread-safe."""

    _known: dict[str, Download] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, folder: Path, base_name: str) -> tuple[str, float]:
        """A new token for a folder, and when it expires, seconds since 1970."""
        with self._lock:
            now = time.time()
            self._known = {token: one for token, one in self._known.items() if one.expires_at > now}
            token = secrets.token_urlsafe(32)
            self._known[token] = Download(folder, base_name, now + _KEEP_SECONDS)
            return token, now + _KEEP_SECONDS

    def find(self, token: str) -> Download:
        """What a token opens.

        Raises:
            NotFoundError: It has expired, or was never made by this process.
        """
        with self._lock:
            found = self._known.get(token)
        if found is None or found.expires_at <= time.time():
            raise NotFoundError(
                "an address that has expired, or that this server has not made",
                expected=f"one that was asked for in the last {_KEEP_SECONDS:g} s, since the server was started",
                do="ask for it again: get_external_weights_urls(path)",
            )
        return found
