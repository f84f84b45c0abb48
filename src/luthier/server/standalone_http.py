"""The process that answers HTTP for `luthier serve`: some models by their names, and nothing else.

    python -m luthier.server.standalone_http SOCKET      SOCKET: to listen on, as `lend` of `platform/http/socket.py`
    writes it

The environment says what is served (`luthier.server.standalone.STANDALONE_CONFIG`).
"""

from __future__ import annotations

import asyncio
import os
import sys

from luthier.core.system.facilities import write_stacks_on_request
from luthier.core.system.process_setup import follow_starter, run_to_end
from luthier.features.serving.fresh_models import FreshModels
from luthier.platform.auth.authenticator import StaticKeyAuthenticator
from luthier.platform.home.context import Context
from luthier.platform.home.logs import set_up_logging
from luthier.platform.http.server import make_server
from luthier.platform.http.socket import lent
from luthier.server.api import create_app
from luthier.server.standalone import STANDALONE_CONFIG, StandaloneConfig


def main(argument: str) -> None:
    """Serve the models of the environment on a socket until SIGTERM."""
    follow_starter()
    config = StandaloneConfig.model_validate_json(os.environ[STANDALONE_CONFIG])
    with Context.open() as context, lent(argument) as listening:
        write_stacks_on_request()
        set_up_logging(context.settings.log_format, "serve")
        _ = context.database  # made and brought up to date before the first request
        # Before the app is made, which leaves out the routes that need a whole home.
        context.only = FreshModels(context.home, config.models)
        in_vllm = {(one.path, one.sha256) for one in config.models.values() if one.engine == "vllm"}
        context.inference_client.num_vllm = len(in_vllm)  # adapters of one base share its process
        app = create_app(
            context, authenticator=StaticKeyAuthenticator(context, config.key_digests, is_open=config.is_open)
        )
        asyncio.run(make_server(app, context, app.state.readiness).serve(sockets=[listening]))


if __name__ == "__main__":
    # Taking down what is in memory takes a second of processor time, and on a busy machine, where the session of this
    # process has a ninth of the usual weight, longer than the grace that it has to end.
    run_to_end(lambda: main(sys.argv[1]))
