"""The process that answers requests; `luthier up` starts it.

    python -m luthier.api.server DESCRIPTOR      DESCRIPTOR: of the socket to listen on, opened by who starts it

The home and the rest of the settings stand in the environment. On SIGTERM it is no longer ready, answers for another
moment, so that who shares out requests hears of it, then ends the requests that are under way within a bounded time.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from luthier.api.app import create_app
from luthier.core.give_way import give_way
from luthier.service.context import Context
from luthier.service.health import Readiness
from luthier.service.logs import set_up_logging
from luthier.service.webhook_sender import WebhookSender

_STILL_ANSWERS_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 10
_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than clients keep an idle connection: who closes it must not be the one that a request is just coming to."""


def main(descriptor: int) -> None:
    """Serve the home of the environment on an open socket until SIGTERM."""
    give_way()
    with Context.open() as context, socket.socket(fileno=descriptor) as listening:
        set_up_logging(context.settings.log_format, "api")
        _ = context.database  # made and brought up to date before the first request
        app = create_app(context)
        with WebhookSender(context):
            asyncio.run(make_server(app, app.state.readiness).serve(sockets=[listening]))


def make_server(app: FastAPI, readiness: Readiness) -> uvicorn.Server:
    """The HTTP server of the app; it writes no log lines of its own below warnings."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    return _Server(config, readiness)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, readiness: Readiness) -> None:
        super().__init__(config)
        self._readiness = readiness

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """First not ready, then, a moment later, no longer listening; a second signal does not wait."""
        if self._readiness.is_stopping:
            self.force_exit = self.should_exit
            self.should_exit = True
            return
        self._readiness.is_stopping = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, _STILL_ANSWERS_SECONDS, self._leave)

    def _leave(self) -> None:
        self.should_exit = True


if __name__ == "__main__":
    main(int(sys.argv[1]))
