"""The HTTP server around an app, and how it ends: not ready first, then, a moment later, no longer listening."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from luthier.platform.home.context import Context
from luthier.platform.http.middleware.forwarded import TrustedProxies
from luthier.platform.http.protocol import BoundedHttpProtocol
from luthier.platform.http.readiness import Readiness

_STILL_ANSWERS_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 10
_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than clients keep an idle connection: who closes it must not be the one that a request is just coming to."""


def make_server(app: FastAPI, context: Context, readiness: Readiness) -> uvicorn.Server:
    """The HTTP server of the app; it writes no log lines of its own below warnings.

    Who a client is, is what the connection says; what a proxy says of it is believed of `settings.trusted_proxies`
    alone, never because a connection comes from this machine, from which others may connect, too.
    """
    config = uvicorn.Config(
        TrustedProxies(app, context.settings.trusted_proxies.split()),
        proxy_headers=False,  # uvicorn's own way believes each connection from this machine
        http=BoundedHttpProtocol,
        ws="none",
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
        # Called from a signal handler: only this one wakes a loop that is waiting in select.
        loop.call_soon_threadsafe(loop.call_later, _STILL_ANSWERS_SECONDS, self._leave)

    def _leave(self) -> None:
        self.should_exit = True
