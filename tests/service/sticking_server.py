"""The server of a home, with an address of its own at which a request keeps its thread for good.

python sticking_server.py DESCRIPTOR
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading

from luthier.api import liveness
from luthier.api.server import make_server
from luthier.home_server import create_home_app
from luthier.service.context import Context


def stick() -> None:
    threading.Event().wait()


def main(descriptor: int) -> None:
    liveness.THREAD_SECONDS = 0.2
    with Context.open() as context, socket.socket(fileno=descriptor) as listening:
        _ = context.database
        app = create_home_app(context)
        app.add_api_route("/stick", stick)
        asyncio.run(make_server(app, context, app.state.readiness).serve(sockets=[listening]))


main(int(sys.argv[1]))
