"""The client of a job: it asks the engine process of the server where that holds the model, else one of its own.

The connection is made by the first request, and tried again a few seconds after it was lost: a server may be started
or stopped while a job runs.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import LuthierError, WorkError
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import (
    Failed,
    LoadedModel,
    Served,
    StreamEvent,
    TextRequest,
    stream_event,
)
from luthier.core.system.facilities import unix_socket
from luthier.core.system.process_setup import start_daemon
from luthier.features.serving.engine_balance import EnginePick
from luthier.features.serving.engine_lending import documents_of, line_of, socket_address
from luthier.features.serving.inference_client import InferenceClient
from luthier.features.serving.open_request import OnEvent, OpenRequest, document_of
from luthier.platform.home.settings import Settings

_AGAIN_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0
Cancel = Callable[[], None]


class BorrowingClient(InferenceClient):
    """An inference client that loads no model which the server of the home has in memory.

    Args:
        settings: Of the home.
        clock: Seconds that never go back.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(settings, has_session=False)
        self._server = ServerConnection(settings.home, clock=clock)

    @property
    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models in memory, those of the server first."""
        lender = self._server.lender
        return (() if lender is None else lender.loaded) + super().loaded

    def preload(self, model: Served) -> None:
        """As of the base class, where the server does not have the model."""
        if self._lender_of(model) is None:
            super().preload(model)

    def close(self) -> None:
        """End the connection and the process; requests under way fail."""
        self._server.close()
        super().close()

    def _ask(
        self,
        model: Served,
        request: TextRequest | PoolingRequest,
        hear: OnEvent,
        key: str | None,
        pick: EnginePick | None,
        *,
        had_slot: bool = False,
    ) -> Cancel:
        own = partial(super()._ask, model, request, hear, key, pick, had_slot=had_slot)
        lender = self._lender_of(model)
        cancel = None if lender is None else lender.ask(model, request, hear, own)
        return own() if cancel is None else cancel

    def _lender_of(self, model: Served) -> Lender | None:
        """The connection to a server that has a model in memory."""
        lender = self._server.lender
        return lender if lender is not None and any(one.answers(model) for one in lender.loaded) else None


class ServerConnection:
    """The connection to the server of a home, made when it is first needed, and again some seconds after it was lost.

    Args:
        home: The home.
        clock: Seconds that never go back.
    """

    def __init__(self, home: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._home, self._clock = home, clock
        self._lock = threading.Lock()
        self._lender: Lender | None = None
        self._tried_at = -_AGAIN_SECONDS

    @property
    def lender(self) -> Lender | None:
        """The server that lends its engine process; None where there is none on this machine."""
        with self._lock:
            if self._lender is not None and self._lender.has_ended:
                self._lender = None
            if self._lender is None and self._clock() - self._tried_at >= _AGAIN_SECONDS:
                self._lender = _connect(self._home)
                # After it: a server that does not answer is waited for, and not tried again at once.
                self._tried_at = self._clock()
            return self._lender

    def close(self) -> None:
        """End the connection for good; requests under way fail."""
        with self._lock:
            lender, self._lender, self._tried_at = self._lender, None, float("inf")
        if lender is not None:
            lender.close()


class _Borrowed(OpenRequest):
    """A request at the server. own: sends it to the own process instead."""

    def __init__(self, request: TextRequest | PoolingRequest, hear: OnEvent, own: Callable[[], Cancel]) -> None:
        super().__init__(request, hear)
        self._own = own
        self._cancel: Cancel | None = None

    def move(self) -> None:
        """The server does not have the model any more."""
        with self._lock:
            if self._hear is None:
                return
            try:
                # Under the lock: a request that is silenced meanwhile must find what to cancel.
                self._cancel = self._own()
            except LuthierError as error:
                self._hear(Failed.of(error))

    def silence(self) -> None:
        """Suppress all further events, and cancel it in the own process."""
        super().silence()
        with self._lock:
            cancel = self._cancel
        if cancel is not None:
            cancel()


class Lender:
    """A connection to a server that lends its engine process.

    Attributes:
        loaded: The models in its memory.
        held_back_seconds: For how long its live requests have left jobs one place, without a pause.
        has_ended: Whether it takes no request any more.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._documents = connection, documents_of(connection)
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._asked: dict[str, _Borrowed] = {}
        self.has_ended = False
        self.held_back_seconds = 0.0
        # It says at once what it has, or first how busy it is; else it is no server of ours.
        self.loaded = _loaded(next(one["loaded"] for one in self._documents if "loaded" in one))
        connection.settimeout(None)
        start_daemon(self._hear_all, "borrowing")

    def ask(
        self, model: Served, request: TextRequest | PoolingRequest, hear: OnEvent, own: Callable[[], Cancel]
    ) -> Cancel | None:
        """Send a request; None where the connection has ended.

        Args:
            model: The model, as the server has it in memory.
            request: The prompt, or the texts.
            hear: Called from another thread with each event.
            own: Called from another thread where the server does not have the model any more; returns what cancels.
        """
        key, made = uuid.uuid4().hex, _Borrowed(request, hear, own)
        with self._lock:
            if self.has_ended:
                return None
            self._asked[key] = made
        # If the connection ends in between, `_end` has failed this request.
        self._send({"ask": key, "model": model.model_dump(mode="json")} | document_of(request))

        def cancel() -> None:
            with self._lock:
                is_open = self._asked.pop(key, None) is not None
            if is_open:
                self._send({"cancel": key})
            made.silence()

        return cancel

    def close(self) -> None:
        """End the connection; requests under way fail."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, document: dict[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):  # it has ended, which the reader sees
            self._connection.sendall(line_of(document))

    def _hear_all(self) -> None:
        try:
            for document in self._documents:
                if "loaded" in document:
                    self.loaded = _loaded(document["loaded"])
                elif "declined" in document:
                    self._declined(document["declined"])
                elif "held_back" in document:
                    self.held_back_seconds = float(document["held_back"])
                else:
                    for key, event in document["events"]:
                        self._tell(key, stream_event.validate_python(event))
        except (OSError, ValueError):
            pass  # as at its end
        finally:
            self._end()

    def _declined(self, key: str) -> None:
        with self._lock:
            asked = self._asked.pop(key, None)
        if asked is not None:
            asked.move()

    def _tell(self, key: str, event: StreamEvent) -> None:
        with self._lock:
            asked = self._asked.get(key)
            if asked is None:  # cancelled in the meantime
                return
            if asked.ends_with(event):
                del self._asked[key]
        # Outside the lock: whoever hears the event may ask or cancel in turn.
        asked.tell(event)

    def _end(self) -> None:
        with self._lock:
            self.has_ended = True
            left, self._asked = self._asked, {}
        self._connection.close()
        for asked in left.values():
            asked.tell(Failed.of(_lost(), is_of_engine=True))


def _connect(home: Path) -> Lender | None:
    """A connection to the server of a home; None where there is none on this machine."""
    try:
        connection = unix_socket()
    except OSError:
        return None
    try:
        connection.settimeout(_ANSWER_SECONDS)
        with socket_address(home) as address:
            connection.connect(address)
        return Lender(connection)
    except (OSError, ValueError, KeyError, StopIteration, json.JSONDecodeError):
        connection.close()
        return None


def _loaded(documents: list[dict[str, Any]]) -> tuple[LoadedModel, ...]:
    return tuple(LoadedModel.model_validate(one) for one in documents)


def _lost() -> WorkError:
    return WorkError(
        "the server that answered for this job has ended in the middle of its work",
        expected="an answer",
        do="ask again: the job then loads the model itself",
    )
