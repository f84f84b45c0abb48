"""The process that answers HTTP for `luthier serve`: some models by their names, and nothing else.

    python -m luthier.server.standalone_http DESCRIPTOR      DESCRIPTOR: of the socket to listen on, opened by who
    starts it

The environment says what is served (`luthier.server.standalone.STANDALONE_CONFIG`).
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import socket
import sys

from luthier.platform.auth.authenticator import StaticKeyAuthenticator
from luthier.platform.home.context import Context
from luthier.platform.home.logs import set_up_logging
from luthier.platform.http.server import make_server
from luthier.server.api import create_app
from luthier.server.service import STACKS_SIGNAL
from luthier.server.standalone import STANDALONE_CONFIG, StandaloneConfig


def main(descriptor: int) -> None:
    """Serve the models of the environment on an open socket until SIGTERM."""
    config = StandaloneConfig.model_validate_json(os.environ[STANDALONE_CONFIG])
    with Context.open() as context, socket.socket(fileno=descriptor) as listening:
        faulthandler.register(STACKS_SIGNAL)
        set_up_logging(context.settings.log_format, "serve")
        _ = context.database  # made and brought up to date before the first request
        # Before the app is made, which leaves out the routes that need a whole home.
        context.only = config.models
        app = create_app(
            context, authenticator=StaticKeyAuthenticator(context, config.key_digests, is_open=config.is_open)
        )
        asyncio.run(make_server(app, context, app.state.readiness).serve(sockets=[listening]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
